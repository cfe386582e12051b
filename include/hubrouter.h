/*
 * hubrouter: which model of a hub should take a prompt. docs/embedding.md shows C, Go and Python.
 *
 * This is version 1 of the interface. Later versions add functions, statuses, fields at the end of
 * structs that begin with their size, and members of objects in JSON; they change and remove
 * nothing. A new number in the soname would say otherwise.
 *
 * Handles. hubrouter_router, hubrouter_policy, hubrouter_decision and hubrouter_error are opaque. A
 * call that makes one gives it to the caller, who frees it with the function of its name, in any
 * order. Each stays valid when another one is freed. To use or free a handle that was freed is
 * undefined, as is a pointer to nothing. Everything else that is wrong is a status.
 *
 * Statuses. Functions that can fail return a hubrouter_status. If `error`, their last argument, is
 * not NULL, it is set to NULL on success and to a new error on failure. What was there before is
 * overwritten, not freed. The handle that a failed call should have made is NULL.
 *
 * Texts. A text that goes in is a pointer and a length in bytes, needs no NUL at its end and is not
 * kept. It has to be UTF-8. With a length of 0 its pointer may be NULL. A text that comes out is a
 * hubrouter_str that belongs to an object, or is copied into a buffer of the caller: nothing is
 * added at its end.
 *
 * Threads. Every function may be called from any thread with a stack of 64 KiB. Any number of
 * threads may use a router, a policy, a decision or an error at once. Free a handle when no other
 * call uses it. In a forked child, a router works if it is on the CPU with one thread; otherwise
 * its calls return HUBROUTER_UNSUPPORTED.
 *
 * Nothing is global: any number of routers, and of copies of this library, live in one process. The
 * library opens no socket and reads no environment variable. It prints nothing but what Rust prints
 * of a panic; the call then returns HUBROUTER_PANIC.
 */

#ifndef HUBROUTER_H
#define HUBROUTER_H

/* Written by cbindgen from src/capi; include/header.sh writes it again. */

#include <stddef.h>
#include <stdint.h>

// The result of a call. 0 is success, 1 to 99 are the kinds of the library's errors, and from 100
// on are errors in the use of this interface. A number never changes its meaning, and later
// versions may add some.
enum hubrouter_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Success.
  HUBROUTER_OK = 0,
  // The file system refused: missing, unreadable, unwritable, full.
  HUBROUTER_IO = 1,
  // A file or a text is not of the form it claims to be; JSON does not parse.
  HUBROUTER_FORMAT = 2,
  // Parts that are each well-formed do not belong together.
  HUBROUTER_MISMATCH = 3,
  // The tokenizer could not be built or refused a text.
  HUBROUTER_TOKENIZER = 4,
  // The request has no answer: an empty prompt, a text that is not UTF-8, an unknown field.
  HUBROUTER_INVALID_REQUEST = 5,
  // Every model of the hub is retired, or a policy lets none answer.
  HUBROUTER_NO_CANDIDATE = 6,
  // No adapter fits the asked-for device.
  HUBROUTER_NO_ADAPTER = 7,
  // An adapter's limits are too small for this encoder or hub.
  HUBROUTER_LIMITS = 8,
  // The device refused for another reason.
  HUBROUTER_DEVICE = 9,
  // The device went away while it was in use.
  HUBROUTER_DEVICE_LOST = 10,
  // The device has no memory left.
  HUBROUTER_OUT_OF_MEMORY = 11,
  // A weight or a score is not finite.
  HUBROUTER_NUMERIC = 12,
  // A rule of the store or the registry forbids it.
  HUBROUTER_REFUSED = 13,
  // The input is well-formed, and the library does not support it.
  HUBROUTER_UNSUPPORTED = 14,
  // Code of the library panicked: a bug. Other calls are not affected.
  HUBROUTER_PANIC = 15,
  // The request's deadline passed before it was computed, and its policy has no fallback.
  HUBROUTER_DEADLINE = 16,
  // As many calls wait as the queue has places: try again later, or elsewhere.
  HUBROUTER_OVERLOADED = 17,
  // The buffer is too small; the needed length was written. The buffer is as it was.
  HUBROUTER_BUFFER_TOO_SMALL = 100,
  // A pointer is NULL, an index or a size is out of range, or handles do not belong together.
  HUBROUTER_INVALID_ARGUMENT = 101,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum hubrouter_status hubrouter_status;
#else
typedef int32_t hubrouter_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// The API whose JSON a chat request is.
enum hubrouter_chat
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Whichever the request looks like.
  HUBROUTER_CHAT_ANY = 0,
  // OpenAI chat completions.
  HUBROUTER_CHAT_OPENAI = 1,
  // OpenAI responses.
  HUBROUTER_CHAT_OPENAI_RESPONSES = 2,
  // Anthropic messages.
  HUBROUTER_CHAT_ANTHROPIC = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum hubrouter_chat hubrouter_chat;
#else
typedef int32_t hubrouter_chat;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Why a request goes to its model.
typedef struct RouteReason RouteReason;

// The answer to a request. It never changes. The caller frees it; it does not need its router.
typedef struct hubrouter_decision hubrouter_decision;

// Why a call failed: a status and a message. The caller frees it.
typedef struct hubrouter_error hubrouter_error;

// Which models may answer, compiled for the router that made it. The caller frees it, before or
// after the router. After another generation was installed the next request compiles it again.
typedef struct hubrouter_policy hubrouter_policy;

// An open store, ready to answer. The caller frees it; decisions and policies outlive it.
typedef struct hubrouter_router hubrouter_router;

// A text: `len` bytes of UTF-8 at `ptr`, not ended with NUL.
//
// One that the library returns lives as long as the object that it was read from. Where there is
// none, `ptr` is NULL and `len` is 0.
typedef struct hubrouter_str {
  // The first byte.
  const char *ptr;
  // The number of bytes.
  size_t len;
} hubrouter_str;

// A decision without its lists. Set `size` to `sizeof(hubrouter_summary)` before the call.
//
// The texts live as long as the decision.
typedef struct hubrouter_summary {
  // The size of this struct, by the caller.
  size_t size;
  // Ranked models.
  size_t ranked;
  // Domains with an eligible model.
  size_t domains;
  // Models that could answer, if there was a policy; else 0.
  size_t eligible;
  // Tokens that were encoded, special ones included.
  size_t tokens;
  // 1 if the prompt was longer than the encoder's limit and was cut, else 0.
  int32_t truncated;
  // 1 if the answer was made before, for an equal prompt, and kept in the cache; else 0.
  int32_t cached;
  // Share of the prompt's tokens that the tokenizer does not know, 0 to 1.
  float unknown;
  // Best score minus the runner-up's, or best utility if the policy trades; NaN with one model.
  float margin;
  // Probability that the best model is of the prompt's domain; NaN if the generation has no
  // measurement of it, as the next two.
  float domain_confidence;
  // Probability that the best model is the right one.
  float model_confidence;
  // How far the prompt is from the learned ones: the share of held-out prompts that are nearer.
  float out_of_distribution;
  // From the call to the answer, in microseconds.
  double total_us;
  // The id of the request, "" if it had none.
  struct hubrouter_str prompt_id;
  // The generation that answered.
  struct hubrouter_str generation;
  // The device that computed: `cpu`, or the adapter's name.
  struct hubrouter_str device;
  // Why another device or generation answered than the one asked for, if one did.
  struct hubrouter_str degraded;
  // The fallback of the policy that admitted the models, if one did.
  struct hubrouter_str fallback;
  // Why the answer is not the router's own choice, if a policy or a deadline says so. A gateway
  // then does without the answer, unless `fallback` is there.
  struct hubrouter_str abstained;
} hubrouter_summary;

// One ranked model. Set `size` to `sizeof(hubrouter_ranked)` before the call.
//
// The texts live as long as the decision.
typedef struct hubrouter_ranked {
  // The size of this struct, by the caller.
  size_t size;
  // Its name.
  struct hubrouter_str model;
  // Its domain.
  struct hubrouter_str domain;
  // Its family, if known.
  struct hubrouter_str family;
  // The first of its deployments that may answer, if the policy has candidates.
  struct hubrouter_str deployment;
  // Deployments that may answer; the others are read with `hubrouter_decision_deployment`.
  size_t deployments;
  // Its id in the registry.
  uint32_t id;
  // The score.
  float score;
  // Cosine of prompt and model embedding, -1 to 1.
  float cosine;
  // Softmax of the scores over all eligible models.
  float probability;
  // Score less cost and latency if the policy trades; NaN if there is none.
  double utility;
} hubrouter_ranked;

// The score of a domain. Set `size` to `sizeof(hubrouter_domain)` before the call.
//
// The text lives as long as the decision.
typedef struct hubrouter_domain {
  // The size of this struct, by the caller.
  size_t size;
  // The domain.
  struct hubrouter_str domain;
  // Log-sum-exp of its eligible members' scores.
  float score;
  // The members' probabilities, added.
  float probability;
} hubrouter_domain;

// The functions of this interface, for hosts that open the library with `dlopen`: one symbol,
// `hubrouter_api`, leads to all. Later versions add fields at the end, so a host reads what lies
// within `size`.
typedef struct hubrouter_functions {
  // The size of this struct in the library.
  size_t size;
  // The version of the interface in the library.
  uint32_t version;
  // The functions by their names, from here on.
  const char *(*hubrouter_version)(void);
  const char *(*hubrouter_status_name)(int32_t status);
  hubrouter_status (*hubrouter_error_status)(const struct hubrouter_error *error);
  const char *(*hubrouter_error_message)(const struct hubrouter_error *error);
  void (*hubrouter_error_free)(struct hubrouter_error *error);
  hubrouter_status (*hubrouter_router_open)(const char *store,
                                            size_t store_len,
                                            const char *options,
                                            size_t options_len,
                                            struct hubrouter_router **router,
                                            struct hubrouter_error **error);
  hubrouter_status (*hubrouter_router_open_generation)(const char *store,
                                                       size_t store_len,
                                                       const char *generation,
                                                       size_t generation_len,
                                                       const char *options,
                                                       size_t options_len,
                                                       struct hubrouter_router **router,
                                                       struct hubrouter_error **error);
  void (*hubrouter_router_free)(struct hubrouter_router *router);
  hubrouter_status (*hubrouter_router_route)(const struct hubrouter_router *router,
                                             const char *prompt,
                                             size_t prompt_len,
                                             size_t top,
                                             const struct hubrouter_policy *policy,
                                             struct hubrouter_decision **decision,
                                             struct hubrouter_error **error);
  hubrouter_status (*hubrouter_router_route_json)(const struct hubrouter_router *router,
                                                  const char *request,
                                                  size_t request_len,
                                                  const struct hubrouter_policy *policy,
                                                  struct hubrouter_decision **decision,
                                                  struct hubrouter_error **error);
  hubrouter_status (*hubrouter_router_route_chat)(const struct hubrouter_router *router,
                                                  const char *body,
                                                  size_t body_len,
                                                  int32_t shape,
                                                  const char *request,
                                                  size_t request_len,
                                                  const struct hubrouter_policy *policy,
                                                  struct hubrouter_decision **decision,
                                                  struct hubrouter_error **error);
  hubrouter_status (*hubrouter_router_route_batch)(const struct hubrouter_router *router,
                                                   const struct hubrouter_str *prompts,
                                                   size_t count,
                                                   size_t top,
                                                   const struct hubrouter_policy *policy,
                                                   struct hubrouter_decision **decisions,
                                                   struct hubrouter_error **errors,
                                                   struct hubrouter_error **error);
  hubrouter_status (*hubrouter_router_json)(const struct hubrouter_router *router,
                                            char *buffer,
                                            size_t capacity,
                                            size_t *length,
                                            struct hubrouter_error **error);
  hubrouter_status (*hubrouter_router_hub)(const struct hubrouter_router *router,
                                           char *buffer,
                                           size_t capacity,
                                           size_t *length,
                                           struct hubrouter_error **error);
  hubrouter_status (*hubrouter_router_generation)(const struct hubrouter_router *router,
                                                  char *buffer,
                                                  size_t capacity,
                                                  size_t *length,
                                                  struct hubrouter_error **error);
  hubrouter_status (*hubrouter_router_warm_up)(const struct hubrouter_router *router,
                                               struct hubrouter_error **error);
  hubrouter_status (*hubrouter_router_refresh)(const struct hubrouter_router *router,
                                               int32_t *changed,
                                               struct hubrouter_error **error);
  hubrouter_status (*hubrouter_router_install)(const struct hubrouter_router *router,
                                               const char *generation,
                                               size_t generation_len,
                                               struct hubrouter_error **error);
  hubrouter_status (*hubrouter_router_rollback)(const struct hubrouter_router *router,
                                                struct hubrouter_error **error);
  hubrouter_status (*hubrouter_policy_compile)(const struct hubrouter_router *router,
                                               const char *json,
                                               size_t json_len,
                                               struct hubrouter_policy **policy,
                                               struct hubrouter_error **error);
  hubrouter_status (*hubrouter_policy_candidates)(const struct hubrouter_router *router,
                                                  const struct hubrouter_str *names,
                                                  size_t count,
                                                  struct hubrouter_policy **policy,
                                                  struct hubrouter_error **error);
  hubrouter_status (*hubrouter_policy_eligible)(const struct hubrouter_policy *policy,
                                                size_t *eligible,
                                                struct hubrouter_error **error);
  hubrouter_status (*hubrouter_policy_json)(const struct hubrouter_policy *policy,
                                            char *buffer,
                                            size_t capacity,
                                            size_t *length,
                                            struct hubrouter_error **error);
  void (*hubrouter_policy_free)(struct hubrouter_policy *policy);
  hubrouter_status (*hubrouter_decision_summary)(const struct hubrouter_decision *decision,
                                                 struct hubrouter_summary *summary,
                                                 struct hubrouter_error **error);
  hubrouter_status (*hubrouter_decision_ranked)(const struct hubrouter_decision *decision,
                                                size_t index,
                                                struct hubrouter_ranked *ranked,
                                                struct hubrouter_error **error);
  hubrouter_status (*hubrouter_decision_deployment)(const struct hubrouter_decision *decision,
                                                    size_t index,
                                                    size_t deployment,
                                                    struct hubrouter_str *name,
                                                    struct hubrouter_error **error);
  hubrouter_status (*hubrouter_decision_domain)(const struct hubrouter_decision *decision,
                                                size_t index,
                                                struct hubrouter_domain *domain,
                                                struct hubrouter_error **error);
  hubrouter_status (*hubrouter_decision_json)(const struct hubrouter_decision *decision,
                                              char *buffer,
                                              size_t capacity,
                                              size_t *length,
                                              struct hubrouter_error **error);
  void (*hubrouter_decision_free)(struct hubrouter_decision *decision);
  hubrouter_status (*hubrouter_chat_model)(const char *body,
                                           size_t body_len,
                                           char *buffer,
                                           size_t capacity,
                                           size_t *length,
                                           struct hubrouter_error **error);
  hubrouter_status (*hubrouter_chat_with_model)(const char *body,
                                                size_t body_len,
                                                const char *model,
                                                size_t model_len,
                                                char *buffer,
                                                size_t capacity,
                                                size_t *length,
                                                struct hubrouter_error **error);
} hubrouter_functions;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The name of a status: `"no_candidate"`, as `kind` in the JSON form of an error, or `"unknown"`.
// It ends with NUL and is never freed.
const char *hubrouter_status_name(int32_t status);

// The status of an error, `HUBROUTER_OK` for NULL.
hubrouter_status hubrouter_error_status(const struct hubrouter_error *error);

// The message of an error, for people: it names the file, the field or the argument, what was
// expected and what was found. It ends with NUL and lives as long as the error. `""` for NULL.
const char *hubrouter_error_message(const struct hubrouter_error *error);

// Frees an error. NULL is allowed.
void hubrouter_error_free(struct hubrouter_error *error);

// Opens the current generation of the store in the folder `store`. If that is damaged, an earlier
// one opens instead, and every decision says so in `degraded`.
//
// `options`: JSON with any of `schema_version` (1), `device`, `threads`, `fallback`, `encoder`,
// `look_in`, `max_tokens`, `precision`, `cpu`, `cache_bytes`, `queue`, `sessions`, `gather_us`,
// `cache_folder`. With a length of 0 all are the defaults. A server that routes prompt by prompt takes
// `{"device": "cpu", "threads": 1}`.
hubrouter_status hubrouter_router_open(const char *store,
                                       size_t store_len,
                                       const char *options,
                                       size_t options_len,
                                       struct hubrouter_router **router,
                                       struct hubrouter_error **error);

// As `hubrouter_router_open`, for the generation of the id `generation`, whichever is current.
hubrouter_status hubrouter_router_open_generation(const char *store,
                                                  size_t store_len,
                                                  const char *generation,
                                                  size_t generation_len,
                                                  const char *options,
                                                  size_t options_len,
                                                  struct hubrouter_router **router,
                                                  struct hubrouter_error **error);

// Frees a router. NULL is allowed. Its decisions and policies stay as they are; a policy keeps the
// router's memory until it is freed, too.
void hubrouter_router_free(struct hubrouter_router *router);

// Ranks the best `top` models for a prompt, among those that `policy` admits if it is not NULL.
//
// Fails with `HUBROUTER_INVALID_REQUEST` if the prompt has no text, with `HUBROUTER_NO_CANDIDATE`
// if no model may answer, and with `HUBROUTER_INVALID_ARGUMENT` if another router has compiled the
// policy.
hubrouter_status hubrouter_router_route(const struct hubrouter_router *router,
                                        const char *prompt,
                                        size_t prompt_len,
                                        size_t top,
                                        const struct hubrouter_policy *policy,
                                        struct hubrouter_decision **decision,
                                        struct hubrouter_error **error);

// As `hubrouter_router_route`, for a request in JSON: `prompt`, and any of `prompt_id`, `top` (10
// if it is missing), `session` (`tenant` and `id`), `deadline_us`, and `chat`, the record of a
// chat request.
hubrouter_status hubrouter_router_route_json(const struct hubrouter_router *router,
                                             const char *request,
                                             size_t request_len,
                                             const struct hubrouter_policy *policy,
                                             struct hubrouter_decision **decision,
                                             struct hubrouter_error **error);

// As `hubrouter_router_route`, for the body of a chat request as a client sends it. What is routed
// is the newest ask of a person; `docs/chat.md` has the rules. `shape`: the API, one of
// `hubrouter_chat`. `request`: JSON with the other fields of a request, as for
// `hubrouter_router_route_json`; with a length of 0 they have their defaults.
//
// Fails with `HUBROUTER_FORMAT` if it is no JSON, and with `HUBROUTER_INVALID_REQUEST` if it is no
// chat request or has no text.
hubrouter_status hubrouter_router_route_chat(const struct hubrouter_router *router,
                                             const char *body,
                                             size_t body_len,
                                             int32_t shape,
                                             const char *request,
                                             size_t request_len,
                                             const struct hubrouter_policy *policy,
                                             struct hubrouter_decision **decision,
                                             struct hubrouter_error **error);

// Routes `count` prompts together: sooner than one after the other, with the same answers.
//
// `decisions` and `errors` are arrays of `count` pointers; `errors` may be NULL. Each prompt gets
// a decision or an error, and the other pointer is NULL. The call returns the status of the first
// prompt that has no decision, and `error` has that prompt's error, too. If an argument is
// invalid, there are no decisions and no `errors`.
hubrouter_status hubrouter_router_route_batch(const struct hubrouter_router *router,
                                              const struct hubrouter_str *prompts,
                                              size_t count,
                                              size_t top,
                                              const struct hubrouter_policy *policy,
                                              struct hubrouter_decision **decisions,
                                              struct hubrouter_error **errors,
                                              struct hubrouter_error **error);

// Copies what the router is at this moment as JSON into `buffer`: generation, store, models,
// device and numbers with the reasons for them, threads, limit on tokens, counts. `length` as in
// `hubrouter_decision_json`. The text may be longer in the next call, after another thread has
// installed a generation.
hubrouter_status hubrouter_router_json(const struct hubrouter_router *router,
                                       char *buffer,
                                       size_t capacity,
                                       size_t *length,
                                       struct hubrouter_error **error);

// Copies the hub that is served as JSON into `buffer`, in the form of `hub.json`: each model with
// name, domain, family, attributes, aliases. `length` as in `hubrouter_router_json`.
hubrouter_status hubrouter_router_hub(const struct hubrouter_router *router,
                                      char *buffer,
                                      size_t capacity,
                                      size_t *length,
                                      struct hubrouter_error **error);

// Copies the id of the generation that is served into `buffer`. `length` as in
// `hubrouter_router_json`.
hubrouter_status hubrouter_router_generation(const struct hubrouter_router *router,
                                             char *buffer,
                                             size_t capacity,
                                             size_t *length,
                                             struct hubrouter_error **error);

// Routes prompts of all lengths, so that the first request of a client is as fast as the others.
hubrouter_status hubrouter_router_warm_up(const struct hubrouter_router *router,
                                          struct hubrouter_error **error);

// Serves the store's current generation, if it is not served already: after another process has
// learned or rolled back. `changed`, which may be NULL, becomes 1 if something changed, else 0.
// Calls under way finish on the old one; on a failure the old one stays.
hubrouter_status hubrouter_router_refresh(const struct hubrouter_router *router,
                                          int32_t *changed,
                                          struct hubrouter_error **error);

// Serves the generation of the id `generation` from now on. On a failure the old one stays.
hubrouter_status hubrouter_router_install(const struct hubrouter_router *router,
                                          const char *generation,
                                          size_t generation_len,
                                          struct hubrouter_error **error);

// Makes the parent of the served generation current in the store and serves it. Fails with
// `HUBROUTER_REFUSED` if it has none; store and router stay as they are then.
hubrouter_status hubrouter_router_rollback(const struct hubrouter_router *router,
                                           struct hubrouter_error **error);

// Compiles a policy, given as JSON: `docs/policy.md` has its fields.
//
// Fails with `HUBROUTER_FORMAT` or `HUBROUTER_INVALID_REQUEST` if it is no policy or names a model
// that the hub does not have. That it admits no model is no failure here.
hubrouter_status hubrouter_policy_compile(const struct hubrouter_router *router,
                                          const char *json,
                                          size_t json_len,
                                          struct hubrouter_policy **policy,
                                          struct hubrouter_error **error);

// Compiles the policy that admits the models of these names alone.
//
// Fails with `HUBROUTER_INVALID_REQUEST` if the hub lacks a name.
hubrouter_status hubrouter_policy_candidates(const struct hubrouter_router *router,
                                             const struct hubrouter_str *names,
                                             size_t count,
                                             struct hubrouter_policy **policy,
                                             struct hubrouter_error **error);

// Writes how many models may answer a request, its needs aside; 0 if none may.
hubrouter_status hubrouter_policy_eligible(const struct hubrouter_policy *policy,
                                           size_t *eligible,
                                           struct hubrouter_error **error);

// Copies a report as JSON into `buffer`: the policy, the generation that it was compiled for, how
// many models are eligible, and what excluded the others. `length` as in
// `hubrouter_decision_json`.
hubrouter_status hubrouter_policy_json(const struct hubrouter_policy *policy,
                                       char *buffer,
                                       size_t capacity,
                                       size_t *length,
                                       struct hubrouter_error **error);

// Frees a policy. NULL is allowed.
void hubrouter_policy_free(struct hubrouter_policy *policy);

// Fills `summary`.
hubrouter_status hubrouter_decision_summary(const struct hubrouter_decision *decision,
                                            struct hubrouter_summary *summary,
                                            struct hubrouter_error **error);

// Fills `ranked` with the model at `index`; 0 is the best.
hubrouter_status hubrouter_decision_ranked(const struct hubrouter_decision *decision,
                                           size_t index,
                                           struct hubrouter_ranked *ranked,
                                           struct hubrouter_error **error);

// Writes the deployment at `deployment` of the ranked model at `index`: with a trade-off the
// cheapest first, else in the order of the policy.
hubrouter_status hubrouter_decision_deployment(const struct hubrouter_decision *decision,
                                               size_t index,
                                               size_t deployment,
                                               struct hubrouter_str *name,
                                               struct hubrouter_error **error);

// Fills `domain` with the domain at `index`; 0 is the best.
hubrouter_status hubrouter_decision_domain(const struct hubrouter_decision *decision,
                                           size_t index,
                                           struct hubrouter_domain *domain,
                                           struct hubrouter_error **error);

// Copies the decision as JSON into `buffer`, the form of `hubrouter route --json`, and its length
// to `length`. With NULL and 0 as a buffer only the length is written.
hubrouter_status hubrouter_decision_json(const struct hubrouter_decision *decision,
                                         char *buffer,
                                         size_t capacity,
                                         size_t *length,
                                         struct hubrouter_error **error);

// Frees a decision and its texts. NULL is allowed.
void hubrouter_decision_free(struct hubrouter_decision *decision);

// Copies the model that the body of a chat request names to `buffer`. Only the key `model` of the
// outermost object counts; the rest is not looked at but for its form as JSON.
//
// Fails with `HUBROUTER_INVALID_REQUEST` if the body is no JSON object, or has no model, several,
// or one that is no text.
hubrouter_status hubrouter_chat_model(const char *body,
                                      size_t body_len,
                                      char *buffer,
                                      size_t capacity,
                                      size_t *length,
                                      struct hubrouter_error **error);

// Copies the body of a chat request to `buffer`, with `model` in place of the model that it names.
// No other byte changes. A capacity of `body_len + 6 * model_len + 2` is always enough.
//
// Fails as `hubrouter_chat_model` does, and if the body is not UTF-8.
hubrouter_status hubrouter_chat_with_model(const char *body,
                                           size_t body_len,
                                           const char *model,
                                           size_t model_len,
                                           char *buffer,
                                           size_t capacity,
                                           size_t *length,
                                           struct hubrouter_error **error);

// The version of the library, as `"0.1.0"`. It ends with NUL and is never freed.
const char *hubrouter_version(void);

// The table of functions, or NULL if the library does not have `version` of this interface: this
// header describes version 1. The table is never freed.
const struct hubrouter_functions *hubrouter_api(uint32_t version);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HUBROUTER_H */
