/* Version 1 of the interface as it was promised: a header that breaks it does not compile here, or
 * the program fails. Lines are added for what later versions add. None is ever changed. */
#include <hubrouter.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* Numbers of statuses and shapes. */
_Static_assert(HUBROUTER_OK == 0, "");
_Static_assert(HUBROUTER_IO == 1, "");
_Static_assert(HUBROUTER_FORMAT == 2, "");
_Static_assert(HUBROUTER_MISMATCH == 3, "");
_Static_assert(HUBROUTER_TOKENIZER == 4, "");
_Static_assert(HUBROUTER_INVALID_REQUEST == 5, "");
_Static_assert(HUBROUTER_NO_CANDIDATE == 6, "");
_Static_assert(HUBROUTER_NO_ADAPTER == 7, "");
_Static_assert(HUBROUTER_LIMITS == 8, "");
_Static_assert(HUBROUTER_DEVICE == 9, "");
_Static_assert(HUBROUTER_DEVICE_LOST == 10, "");
_Static_assert(HUBROUTER_OUT_OF_MEMORY == 11, "");
_Static_assert(HUBROUTER_NUMERIC == 12, "");
_Static_assert(HUBROUTER_REFUSED == 13, "");
_Static_assert(HUBROUTER_UNSUPPORTED == 14, "");
_Static_assert(HUBROUTER_PANIC == 15, "");
_Static_assert(HUBROUTER_DEADLINE == 16, "");
_Static_assert(HUBROUTER_OVERLOADED == 17, "");
_Static_assert(HUBROUTER_BUFFER_TOO_SMALL == 100, "");
_Static_assert(HUBROUTER_INVALID_ARGUMENT == 101, "");
_Static_assert(sizeof(hubrouter_status) == 4, "");
_Static_assert(HUBROUTER_CHAT_ANY == 0, "");
_Static_assert(HUBROUTER_CHAT_OPENAI == 1, "");
_Static_assert(HUBROUTER_CHAT_OPENAI_RESPONSES == 2, "");
_Static_assert(HUBROUTER_CHAT_ANTHROPIC == 3, "");

/* Fields: type and place. A pointer of another type is a warning, which is an error here. */
#define FIELD(structure, type, field, place)                                    \
  _Static_assert(offsetof(structure, field) == (place), #structure "." #field); \
  _Static_assert(_Generic(((structure *)0)->field, type: 1, default: 0), #structure "." #field)

#if UINTPTR_MAX == UINT64_MAX
FIELD(hubrouter_str, const char *, ptr, 0);
FIELD(hubrouter_str, size_t, len, 8);
_Static_assert(sizeof(hubrouter_str) == 16, "");

FIELD(hubrouter_summary, size_t, size, 0);
FIELD(hubrouter_summary, size_t, ranked, 8);
FIELD(hubrouter_summary, size_t, domains, 16);
FIELD(hubrouter_summary, size_t, eligible, 24);
FIELD(hubrouter_summary, size_t, tokens, 32);
FIELD(hubrouter_summary, int32_t, truncated, 40);
FIELD(hubrouter_summary, int32_t, cached, 44);
FIELD(hubrouter_summary, float, unknown, 48);
FIELD(hubrouter_summary, float, margin, 52);
FIELD(hubrouter_summary, float, domain_confidence, 56);
FIELD(hubrouter_summary, float, model_confidence, 60);
FIELD(hubrouter_summary, float, out_of_distribution, 64);
FIELD(hubrouter_summary, double, total_us, 72);
FIELD(hubrouter_summary, hubrouter_str, prompt_id, 80);
FIELD(hubrouter_summary, hubrouter_str, generation, 96);
FIELD(hubrouter_summary, hubrouter_str, device, 112);
FIELD(hubrouter_summary, hubrouter_str, degraded, 128);
FIELD(hubrouter_summary, hubrouter_str, fallback, 144);
FIELD(hubrouter_summary, hubrouter_str, abstained, 160);

FIELD(hubrouter_ranked, size_t, size, 0);
FIELD(hubrouter_ranked, hubrouter_str, model, 8);
FIELD(hubrouter_ranked, hubrouter_str, domain, 24);
FIELD(hubrouter_ranked, hubrouter_str, family, 40);
FIELD(hubrouter_ranked, hubrouter_str, deployment, 56);
FIELD(hubrouter_ranked, size_t, deployments, 72);
FIELD(hubrouter_ranked, uint32_t, id, 80);
FIELD(hubrouter_ranked, float, score, 84);
FIELD(hubrouter_ranked, float, cosine, 88);
FIELD(hubrouter_ranked, float, probability, 92);
FIELD(hubrouter_ranked, double, utility, 96);

FIELD(hubrouter_domain, size_t, size, 0);
FIELD(hubrouter_domain, hubrouter_str, domain, 8);
FIELD(hubrouter_domain, float, score, 24);
FIELD(hubrouter_domain, float, probability, 28);

FIELD(hubrouter_functions, size_t, size, 0);
FIELD(hubrouter_functions, uint32_t, version, 8);
#endif

/* Functions: each with its type, and its place in the table, counted from 0 behind `version`. */
#define FUNCTIONS(f)                                                                               \
  f(0, const char *, hubrouter_version, (void))                                                    \
  f(1, const char *, hubrouter_status_name, (int32_t))                                             \
  f(2, hubrouter_status, hubrouter_error_status, (const hubrouter_error *))                        \
  f(3, const char *, hubrouter_error_message, (const hubrouter_error *))                           \
  f(4, void, hubrouter_error_free, (hubrouter_error *))                                            \
  f(5, hubrouter_status, hubrouter_router_open,                                                    \
    (const char *, size_t, const char *, size_t, hubrouter_router **, hubrouter_error **))         \
  f(6, hubrouter_status, hubrouter_router_open_generation,                                         \
    (const char *, size_t, const char *, size_t, const char *, size_t, hubrouter_router **,        \
     hubrouter_error **))                                                                          \
  f(7, void, hubrouter_router_free, (hubrouter_router *))                                          \
  f(8, hubrouter_status, hubrouter_router_route,                                                   \
    (const hubrouter_router *, const char *, size_t, size_t, const hubrouter_policy *,             \
     hubrouter_decision **, hubrouter_error **))                                                   \
  f(9, hubrouter_status, hubrouter_router_route_json,                                              \
    (const hubrouter_router *, const char *, size_t, const hubrouter_policy *,                     \
     hubrouter_decision **, hubrouter_error **))                                                   \
  f(10, hubrouter_status, hubrouter_router_route_chat,                                             \
    (const hubrouter_router *, const char *, size_t, int32_t, const char *, size_t,                \
     const hubrouter_policy *, hubrouter_decision **, hubrouter_error **))                         \
  f(11, hubrouter_status, hubrouter_router_route_batch,                                            \
    (const hubrouter_router *, const hubrouter_str *, size_t, size_t, const hubrouter_policy *,    \
     hubrouter_decision **, hubrouter_error **, hubrouter_error **))                               \
  f(12, hubrouter_status, hubrouter_router_json,                                                   \
    (const hubrouter_router *, char *, size_t, size_t *, hubrouter_error **))                      \
  f(13, hubrouter_status, hubrouter_router_hub,                                                    \
    (const hubrouter_router *, char *, size_t, size_t *, hubrouter_error **))                      \
  f(14, hubrouter_status, hubrouter_router_generation,                                             \
    (const hubrouter_router *, char *, size_t, size_t *, hubrouter_error **))                      \
  f(15, hubrouter_status, hubrouter_router_warm_up,                                                \
    (const hubrouter_router *, hubrouter_error **))                                                \
  f(16, hubrouter_status, hubrouter_router_refresh,                                                \
    (const hubrouter_router *, int32_t *, hubrouter_error **))                                     \
  f(17, hubrouter_status, hubrouter_router_install,                                                \
    (const hubrouter_router *, const char *, size_t, hubrouter_error **))                          \
  f(18, hubrouter_status, hubrouter_router_rollback,                                               \
    (const hubrouter_router *, hubrouter_error **))                                                \
  f(19, hubrouter_status, hubrouter_policy_compile,                                                \
    (const hubrouter_router *, const char *, size_t, hubrouter_policy **, hubrouter_error **))     \
  f(20, hubrouter_status, hubrouter_policy_candidates,                                             \
    (const hubrouter_router *, const hubrouter_str *, size_t, hubrouter_policy **,                 \
     hubrouter_error **))                                                                          \
  f(21, hubrouter_status, hubrouter_policy_eligible,                                               \
    (const hubrouter_policy *, size_t *, hubrouter_error **))                                      \
  f(22, hubrouter_status, hubrouter_policy_json,                                                   \
    (const hubrouter_policy *, char *, size_t, size_t *, hubrouter_error **))                      \
  f(23, void, hubrouter_policy_free, (hubrouter_policy *))                                         \
  f(24, hubrouter_status, hubrouter_decision_summary,                                              \
    (const hubrouter_decision *, hubrouter_summary *, hubrouter_error **))                         \
  f(25, hubrouter_status, hubrouter_decision_ranked,                                               \
    (const hubrouter_decision *, size_t, hubrouter_ranked *, hubrouter_error **))                  \
  f(26, hubrouter_status, hubrouter_decision_deployment,                                           \
    (const hubrouter_decision *, size_t, size_t, hubrouter_str *, hubrouter_error **))             \
  f(27, hubrouter_status, hubrouter_decision_domain,                                               \
    (const hubrouter_decision *, size_t, hubrouter_domain *, hubrouter_error **))                  \
  f(28, hubrouter_status, hubrouter_decision_json,                                                 \
    (const hubrouter_decision *, char *, size_t, size_t *, hubrouter_error **))                    \
  f(29, void, hubrouter_decision_free, (hubrouter_decision *))                                     \
  f(30, hubrouter_status, hubrouter_chat_model,                                                    \
    (const char *, size_t, char *, size_t, size_t *, hubrouter_error **))                          \
  f(31, hubrouter_status, hubrouter_chat_with_model,                                               \
    (const char *, size_t, const char *, size_t, char *, size_t, size_t *, hubrouter_error **))

#define SYMBOL(number, result, name, arguments) \
  static result(*const promised_##number) arguments = name;
FUNCTIONS(SYMBOL)
static const hubrouter_functions *(*const promised_api)(uint32_t) = hubrouter_api;

#define PLACE(number, result, name, arguments)                                        \
  _Static_assert(offsetof(hubrouter_functions, name) ==                               \
                     offsetof(hubrouter_functions, hubrouter_version) +               \
                         number * sizeof(void (*)(void)),                             \
                 #name);                                                              \
  _Static_assert(                                                                     \
      _Generic(((hubrouter_functions *)0)->name, result(*) arguments: 1, default: 0), \
      #name);
FUNCTIONS(PLACE)

/* The library that is linked: its table has the functions that its symbols are. */
#define SAME(number, result, name, arguments) \
  wrong += table->name != promised_##number;

int main(void) {
  const hubrouter_functions *table = promised_api(1);
  if (table == NULL || table->version < 1 || table->size < sizeof *table) {
    fprintf(stderr, "expected a table of version 1 and at least %zu bytes\n", sizeof *table);
    return 1;
  }
  if (promised_api(0) != NULL || promised_api(UINT32_MAX) != NULL) {
    fprintf(stderr, "expected no table for versions that do not exist\n");
    return 1;
  }
  int wrong = 0;
  FUNCTIONS(SAME)
  if (wrong != 0) {
    fprintf(stderr, "expected the symbols in the table, found %d other functions\n", wrong);
    return 1;
  }
  const char *names[] = {"ok",          "io",         "format",     "mismatch",    "tokenizer",
                         "invalid_request", "no_candidate", "no_adapter", "limits", "device",
                         "device_lost", "out_of_memory", "numeric", "refused",     "unsupported",
                         "panic",       "deadline", "overloaded"};
  for (int32_t status = 0; status < 18; status++) {
    if (strcmp(hubrouter_status_name(status), names[status]) != 0) {
      fprintf(stderr, "%d: expected %s\n", (int)status, names[status]);
      return 1;
    }
  }
  if (strcmp(hubrouter_status_name(-7), "unknown") != 0) return 1;
  printf("version 1 as promised, library %s\n", hubrouter_version());
  return 0;
}
