/* What the programs of this folder share. */
#include <hubrouter.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT(literal) (literal), (sizeof(literal) - 1)

/* Ends the program unless `condition` holds. */
#define CHECK(condition)                                                    \
  do {                                                                      \
    if (!(condition)) {                                                     \
      fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                              \
    }                                                                       \
  } while (0)

/* A router of `store`, on the calling thread. */
static inline hubrouter_router *open_store(const char *store) {
  hubrouter_router *router;
  hubrouter_error *error;
  hubrouter_status status = hubrouter_router_open(
      store, strlen(store), TEXT("{\"device\": \"cpu\", \"threads\": 1}"), &router, &error);
  if (status != HUBROUTER_OK) fprintf(stderr, "%s\n", hubrouter_error_message(error));
  CHECK(status == HUBROUTER_OK && router != NULL && error == NULL);
  return router;
}
