module hubrouter/example

go 1.19
