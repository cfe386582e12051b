package main

// #cgo pkg-config: hubrouter
// #include <hubrouter.h>
import "C"

import (
	"errors"
	"runtime"
	"unsafe"
)

// Error is a status of the library with its message.
type Error struct {
	Status  int
	Kind    string
	Message string
}

func (e *Error) Error() string { return e.Kind + ": " + e.Message }

// failure takes over the error of a call, nil if it succeeded.
func failure(status C.hubrouter_status, err *C.hubrouter_error) error {
	if status == C.HUBROUTER_OK {
		return nil
	}
	defer C.hubrouter_error_free(err)
	return &Error{
		Status:  int(status),
		Kind:    C.GoString(C.hubrouter_status_name(C.int32_t(status))),
		Message: C.GoString(C.hubrouter_error_message(err)),
	}
}

// text is a string as the library takes it: the bytes stay where they are during the call.
func text(s string) (*C.char, C.size_t) {
	if s == "" {
		return nil, 0
	}
	bytes := []byte(s)
	return (*C.char)(unsafe.Pointer(&bytes[0])), C.size_t(len(bytes))
}

func goString(s C.hubrouter_str) string { return C.GoStringN(s.ptr, C.int(s.len)) }

// Router may be used by any number of goroutines at once.
type Router struct{ handle *C.hubrouter_router }

// Open opens the store with options in JSON, "" for the defaults.
func Open(store, options string) (*Router, error) {
	storeText, storeLen := text(store)
	optionsText, optionsLen := text(options)
	var router *C.hubrouter_router
	var err *C.hubrouter_error
	status := C.hubrouter_router_open(storeText, storeLen, optionsText, optionsLen, &router, &err)
	if e := failure(status, err); e != nil {
		return nil, e
	}
	return &Router{router}, nil
}

// Close frees the router. No other call may be under way.
func (r *Router) Close() {
	C.hubrouter_router_free(r.handle)
	r.handle = nil
}

// Ranked is a model with its probability among all eligible ones.
type Ranked struct {
	Model, Domain string
	Probability   float32
}

// Route returns the best models for a prompt, at most top.
func (r *Router) Route(prompt string, top int) ([]Ranked, error) {
	if top < 0 {
		return nil, errors.New("top: expected no negative number")
	}
	promptText, promptLen := text(prompt)
	var decision *C.hubrouter_decision
	var err *C.hubrouter_error
	status := C.hubrouter_router_route(
		r.handle, promptText, promptLen, C.size_t(top), nil, &decision, &err)
	runtime.KeepAlive(r)
	if e := failure(status, err); e != nil {
		return nil, e
	}
	defer C.hubrouter_decision_free(decision)

	summary := C.hubrouter_summary{size: C.sizeof_hubrouter_summary}
	status = C.hubrouter_decision_summary(decision, &summary, &err)
	if e := failure(status, err); e != nil {
		return nil, e
	}
	ranked := make([]Ranked, summary.ranked)
	for n := range ranked {
		model := C.hubrouter_ranked{size: C.sizeof_hubrouter_ranked}
		status = C.hubrouter_decision_ranked(decision, C.size_t(n), &model, &err)
		if e := failure(status, err); e != nil {
			return nil, e
		}
		ranked[n] = Ranked{goString(model.model), goString(model.domain), float32(model.probability)}
	}
	return ranked, nil
}
