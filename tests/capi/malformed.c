/* ./malformed STORE CALLS: calls that are wrong in as many ways as there are, chosen by a fixed
 * seed. Each gives a status other than success, an error with that status and a message, and no
 * handle. Afterwards the router answers as before. */
#include "common.h"

static uint64_t state = 42;

/* splitmix64 */
static uint64_t draw(uint64_t below) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (z ^ (z >> 31)) % below;
}

static size_t counts[128];

static int known(hubrouter_status status) {
  return (status >= 0 && status <= 17) || status == 100 || status == 101;
}

/* Half of the calls do not ask for an error. */
static hubrouter_error *error;
static hubrouter_error **where(void) {
  error = NULL;
  return draw(2) ? &error : NULL;
}

/* `want`: the status, or 0 for any failure. */
static void failed(hubrouter_status status, hubrouter_status want, hubrouter_error **asked,
                   const char *what) {
  int fine = known(status) && status != HUBROUTER_OK && status != HUBROUTER_PANIC &&
             (want == HUBROUTER_OK || status == want);
  if (asked != NULL) {
    fine = fine && error != NULL && hubrouter_error_status(error) == status &&
           strlen(hubrouter_error_message(error)) > 0;
  }
  if (!fine) {
    fprintf(stderr, "%s: expected %s, found %s: %s\n", what,
            want == HUBROUTER_OK ? "a failure" : hubrouter_status_name(want),
            hubrouter_status_name(status), hubrouter_error_message(error));
    exit(1);
  }
  counts[status]++;
  hubrouter_error_free(error);
  error = NULL;
}

/* CALL(status that is wanted, function, arguments without the last) */
#define CALL(want, function, ...)                                  \
  do {                                                             \
    hubrouter_error **asked = where();                             \
    failed(function(__VA_ARGS__, asked), want, asked, #function); \
  } while (0)

/* A pointer that no call may read. */
#define NOWHERE ((const char *)(uintptr_t)8)

/* `text`, of `length` bytes, cut after 1 to length - 1 of them, in memory of just that size. */
static char *cut(const char *text, size_t length, size_t *found) {
  *found = 1 + draw(length - 1);
  char *copy = malloc(*found);
  CHECK(copy != NULL);
  memcpy(copy, text, *found);
  return copy;
}

/* Bytes that are no UTF-8, in memory of just their size. */
static char *no_text(size_t *found) {
  *found = 1 + draw(40);
  char *bytes = malloc(*found);
  CHECK(bytes != NULL);
  for (size_t n = 0; n < *found; n++) bytes[n] = (char)draw(256);
  bytes[draw(*found)] = (char)0xff;
  return bytes;
}

static const char OPTIONS[] = "{\"device\": \"cpu\", \"threads\": 1, \"look_in\": [\"a\"]}";
static const char REQUEST[] = "{\"prompt\": \"Which bird?\", \"top\": 3, \"prompt_id\": \"a\"}";
static const char CHAT[] =
    "{\"model\": \"auto\", \"messages\": [{\"role\": \"user\", \"content\": \"Which bird?\"}]}";
static const char POLICY[] = "{\"candidates\": [\"gpt2\"], \"where\": \"price <= 2\"}";

struct handles {
  const char *store;
  hubrouter_router *router, *other;
  hubrouter_policy *policy, *nobody;
  hubrouter_decision *decision;
};

/* Arguments that open takes, one of them wrong. */
static void open_wrongly(const struct handles *h) {
  hubrouter_router *router = NULL;
  const char *store = h->store;
  size_t store_len = strlen(store), length;
  char *text;
  switch (draw(8)) {
    case 0:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_open, store, store_len, NULL, 0, NULL);
      break;
    case 1:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_open, NULL, 1 + draw(9), NULL, 0, &router);
      break;
    case 2:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_open, NOWHERE, SIZE_MAX - draw(9), NULL, 0,
           &router);
      break;
    case 3:
      text = no_text(&length);
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_router_open, text, length, NULL, 0, &router);
      free(text);
      break;
    case 4:
      text = cut(OPTIONS, sizeof OPTIONS - 1, &length);
      CALL(HUBROUTER_FORMAT, hubrouter_router_open, store, store_len, text, length, &router);
      free(text);
      break;
    case 5: {
      static const char *const wrong[] = {
          "{\"devise\": \"cpu\"}", "{\"threads\": -1}", "{\"schema_version\": 2}", "true", "7",
          "{\"precision\": \"f64\"}"};
      const char *options = wrong[draw(6)];
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_router_open, store, store_len, options,
           strlen(options), &router);
      break;
    }
    case 6:
      CALL(HUBROUTER_OK, hubrouter_router_open, store, draw(store_len), NULL, 0, &router);
      break;
    default: {
      static const char *const ids[] = {"", "g0001", "g0001-00000000000", "g0001-000000000000",
                                        "g9-../../etc", "current"};
      const char *id = ids[draw(6)];
      CALL(HUBROUTER_OK, hubrouter_router_open_generation, store, store_len, id, strlen(id),
           TEXT("{\"device\": \"cpu\"}"), &router);
    }
  }
  CHECK(router == NULL);
}

static void route_wrongly(const struct handles *h) {
  hubrouter_decision *decision = NULL;
  const hubrouter_router *router = h->router;
  size_t length;
  char *text;
  switch (draw(15)) {
    case 0:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_route, NULL, TEXT("Who?"), 1, NULL,
           &decision);
      break;
    case 1:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_route, router, TEXT("Who?"), 1, NULL, NULL);
      break;
    case 2:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_route, router, NULL, 1 + draw(9), 1, NULL,
           &decision);
      break;
    case 3:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_route, router, NOWHERE,
           SIZE_MAX / 2 + 1 + draw(9), 1, NULL, &decision);
      break;
    case 4:
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_router_route, router, " \t\n  ", draw(6), draw(5),
           NULL, &decision);
      break;
    case 5:
      text = no_text(&length);
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_router_route, router, text, length, 1, h->policy,
           &decision);
      free(text);
      break;
    case 6:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_route, h->other, TEXT("Who?"), 1, h->policy,
           &decision);
      break;
    case 7:
      CALL(HUBROUTER_NO_CANDIDATE, hubrouter_router_route, router, TEXT("Who?"), 1, h->nobody,
           &decision);
      break;
    case 8:
      text = cut(REQUEST, sizeof REQUEST - 1, &length);
      CALL(HUBROUTER_FORMAT, hubrouter_router_route_json, router, text, length, NULL, &decision);
      free(text);
      break;
    case 9: {
      static const char *const wrong[] = {
          "{}",   "{\"prompt\": 1}", "{\"prompt\": \"a\", \"top\": -1}",
          "null", "\"prompt\"",      "{\"prompt\": \"\"}"};
      const char *request = wrong[draw(6)];
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_router_route_json, router, request, strlen(request),
           NULL, &decision);
      break;
    }
    case 10:
      text = cut(CHAT, sizeof CHAT - 1, &length);
      CALL(HUBROUTER_FORMAT, hubrouter_router_route_chat, router, text, length, (int32_t)draw(4),
           NULL, 0, NULL, &decision);
      free(text);
      break;
    case 11:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_route_chat, router, TEXT(CHAT),
           draw(2) ? 4 + (int32_t)draw(1000) : -1 - (int32_t)draw(1000), NULL, 0, NULL, &decision);
      break;
    case 12: {
      static const char *const wrong[] = {"{}", "[]", "{\"messages\": 1}", "{\"messages\": []}"};
      const char *body = wrong[draw(4)];
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_router_route_chat, router, body, strlen(body), 0,
           NULL, 0, NULL, &decision);
      break;
    }
    case 13: {
      static const char *const wrong[] = {"{\"top\": -1}", "[]", "7", "{\"session\": {}}"};
      const char *request = wrong[draw(4)];
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_router_route_chat, router, TEXT(CHAT), 0, request,
           strlen(request), NULL, &decision);
      break;
    }
    default:
      text = no_text(&length);
      CALL(HUBROUTER_OK, hubrouter_router_route_chat, router, text, length, 0, NULL, 0, NULL,
           &decision);
      free(text);
  }
  CHECK(decision == NULL);
}

/* A bad prompt between two good ones, and arguments that are wrong for all. */
static void route_batch_wrongly(const struct handles *h) {
  hubrouter_str prompts[] = {{TEXT("Who?")}, {TEXT("")}, {TEXT("Where?")}};
  hubrouter_decision *decisions[3];
  hubrouter_error *errors[3];
  switch (draw(5)) {
    case 0:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_route_batch, h->router, prompts, 3, 1, NULL,
           NULL, errors);
      break;
    case 1:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_route_batch, h->router, NULL, 3, 1, NULL,
           decisions, NULL);
      CHECK(!decisions[0] && !decisions[1] && !decisions[2]);
      break;
    case 2:
      prompts[1].ptr = NULL;
      prompts[1].len = 1 + draw(9);
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_route_batch, h->router, prompts, 3, 1, NULL,
           decisions, errors);
      CHECK(!decisions[0] && !decisions[1] && !decisions[2] && !errors[0] && !errors[1]);
      break;
    case 3:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_route_batch, h->router, prompts,
           SIZE_MAX / 8 - draw(9), 1, NULL, decisions, NULL);
      break;
    default:
      if (draw(2)) {
        prompts[1].ptr = "a\xff";
        prompts[1].len = 2;
      }
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_router_route_batch, h->router, prompts, 3, 1, NULL,
           decisions, errors);
      CHECK(decisions[0] && !decisions[1] && decisions[2] && !errors[0] && errors[1] && !errors[2]);
      CHECK(hubrouter_error_status(errors[1]) == HUBROUTER_INVALID_REQUEST);
      hubrouter_error_free(errors[1]);
      hubrouter_decision_free(decisions[0]);
      hubrouter_decision_free(decisions[2]);
  }
}

static void compile_wrongly(const struct handles *h) {
  hubrouter_policy *policy = NULL;
  size_t length;
  char *text;
  switch (draw(7)) {
    case 0:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_policy_compile, NULL, TEXT(POLICY), &policy);
      break;
    case 1:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_policy_compile, h->router, TEXT(POLICY), NULL);
      break;
    case 2:
      text = cut(POLICY, sizeof POLICY - 1, &length);
      CALL(HUBROUTER_FORMAT, hubrouter_policy_compile, h->router, text, length, &policy);
      free(text);
      break;
    case 3: {
      static const char *const wrong[] = {
          "{\"where\": \"price <\"}", "{\"alow\": []}",  "{\"candidates\": [\"no such\"]}",
          "{\"deny\": [\"id:x\"]}",   "7",              "{\"prefer\": {\"cost\": \"a\"}}"};
      const char *json = wrong[draw(6)];
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_policy_compile, h->router, json, strlen(json),
           &policy);
      break;
    }
    case 4:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_policy_candidates, h->router, NULL, 1 + draw(9),
           &policy);
      break;
    case 5: {
      hubrouter_str names[] = {{TEXT("gpt2")}, {NULL, 1 + draw(9)}};
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_policy_candidates, h->router, names, 2, &policy);
      break;
    }
    default: {
      hubrouter_str names[] = {{TEXT("gpt2")}, {TEXT("no such model")}};
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_policy_candidates, h->router, names, 2, &policy);
    }
  }
  CHECK(policy == NULL);
}

static void read_wrongly(const struct handles *h) {
  hubrouter_summary summary = {.size = draw(sizeof summary)};
  hubrouter_ranked ranked = {.size = draw(sizeof ranked)};
  hubrouter_domain domain = {.size = draw(sizeof domain)};
  hubrouter_str name;
  switch (draw(8)) {
    case 0:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_decision_summary, h->decision, &summary);
      break;
    case 1:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_decision_ranked, h->decision, draw(5), &ranked);
      break;
    case 2:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_decision_domain, h->decision, 0, &domain);
      break;
    case 3:
      ranked.size = sizeof ranked;
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_decision_ranked, h->decision,
           5 + draw(SIZE_MAX - 5), &ranked);
      break;
    case 4:
      domain.size = sizeof domain;
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_decision_domain, h->decision,
           SIZE_MAX - draw(1000), &domain);
      break;
    case 5:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_decision_deployment, h->decision, draw(9), draw(9),
           &name);
      CHECK(name.ptr == NULL && name.len == 0);
      break;
    case 6:
      summary.size = sizeof summary;
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_decision_summary, NULL, &summary);
      break;
    default:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_decision_ranked, h->decision, 0, NULL);
  }
}

/* The functions that copy a text into a buffer, on one object each. */
static hubrouter_status copy(const struct handles *h, uint64_t which, int there, char *buffer,
                             size_t capacity, size_t *length, hubrouter_error **asked) {
  switch (which) {
    case 0:
      return hubrouter_decision_json(there ? h->decision : NULL, buffer, capacity, length, asked);
    case 1:
      return hubrouter_policy_json(there ? h->policy : NULL, buffer, capacity, length, asked);
    case 2:
      return hubrouter_router_json(there ? h->router : NULL, buffer, capacity, length, asked);
    case 3:
      return hubrouter_router_generation(there ? h->router : NULL, buffer, capacity, length, asked);
    default:
      return hubrouter_router_hub(there ? h->router : NULL, buffer, capacity, length, asked);
  }
}

static void copy_wrongly(const struct handles *h) {
  uint64_t which = draw(20) == 0 ? 4 : draw(4);
  size_t length, needed;
  hubrouter_error **asked;
  CHECK(copy(h, which, 1, NULL, 0, &needed, NULL) == HUBROUTER_OK && needed > 0);
  switch (draw(4)) {
    case 0: {
      size_t capacity = draw(needed);
      char *buffer = malloc(capacity + 1);
      CHECK(buffer != NULL);
      memset(buffer, '#', capacity + 1);
      asked = where();
      failed(copy(h, which, 1, buffer, capacity, &length, asked), HUBROUTER_BUFFER_TOO_SMALL, asked,
             "a small buffer");
      CHECK(length == needed);
      for (size_t n = 0; n <= capacity; n++) CHECK(buffer[n] == '#');
      free(buffer);
      break;
    }
    case 1:
      asked = where();
      failed(copy(h, which, 1, NULL, 1 + draw(9), &length, asked), HUBROUTER_INVALID_ARGUMENT,
             asked, "no buffer");
      break;
    case 2:
      asked = where();
      failed(copy(h, which, 1, NULL, 0, NULL, asked), HUBROUTER_INVALID_ARGUMENT, asked,
             "no length");
      break;
    default:
      asked = where();
      failed(copy(h, which, 0, NULL, 0, &length, asked), HUBROUTER_INVALID_ARGUMENT, asked,
             "no object");
  }
}

/* Bodies without a single model, and buffers that do not do. */
static void name_wrongly(void) {
  static const char NAMED[] = "{\"model\": \"auto\", \"messages\": [{\"content\": \"a}\"}]}";
  static const char *const wrong[] = {"",  "[]", "{\"model\": 1}", "{\"model\": \"\xff\"}",
                                      "7", "{}", "{\"model\": \"a\", \"model\": \"a\"}"};
  char buffer[128];
  size_t length;
  char *text = cut(NAMED, sizeof NAMED - 1, &length);
  const char *body = wrong[draw(7)];
  size_t found;
  switch (draw(6)) {
    case 0:
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_chat_model, text, length, buffer, sizeof buffer,
           &found);
      break;
    case 1:
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_chat_model, body, strlen(body), buffer,
           sizeof buffer, &found);
      break;
    case 2:
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_chat_with_model, body, strlen(body), TEXT("gpt2"),
           buffer, sizeof buffer, &found);
      break;
    case 3:
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_chat_with_model, TEXT(NAMED), TEXT("\xff"), buffer,
           sizeof buffer, &found);
      break;
    case 4:
      CALL(HUBROUTER_BUFFER_TOO_SMALL, hubrouter_chat_with_model, TEXT(NAMED), TEXT("gpt2"), buffer,
           1 + draw(sizeof NAMED - 2), &found);
      CHECK(found == sizeof NAMED - 1);
      break;
    default:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_chat_model, draw(2) ? NULL : NOWHERE,
           SIZE_MAX - draw(9), buffer, sizeof buffer, &found);
  }
  free(text);
}

static void swap_wrongly(const struct handles *h) {
  int32_t changed;
  size_t length;
  char *text;
  switch (draw(7)) {
    case 0:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_refresh, NULL, draw(2) ? &changed : NULL);
      break;
    case 1: {
      hubrouter_error **asked = where();
      failed(hubrouter_router_rollback(NULL, asked), HUBROUTER_INVALID_ARGUMENT, asked, "rollback");
      break;
    }
    case 5: {
      hubrouter_error **asked = where();
      failed(hubrouter_router_warm_up(NULL, asked), HUBROUTER_INVALID_ARGUMENT, asked, "warm-up");
      break;
    }
    case 2:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_router_install, NULL, TEXT("g0001-000000000000"));
      break;
    case 3:
      CALL(HUBROUTER_OK, hubrouter_router_install, h->router, TEXT("g0099-000000000000"));
      break;
    case 4:
      text = no_text(&length);
      CALL(HUBROUTER_INVALID_REQUEST, hubrouter_router_install, h->router, text, length);
      free(text);
      break;
    default:
      CALL(HUBROUTER_INVALID_ARGUMENT, hubrouter_policy_eligible, draw(2) ? h->policy : NULL, NULL);
  }
}

/* What is allowed with NULL. */
static void check_null(void) {
  hubrouter_router_free(NULL);
  hubrouter_policy_free(NULL);
  hubrouter_decision_free(NULL);
  hubrouter_error_free(NULL);
  CHECK(hubrouter_error_status(NULL) == HUBROUTER_OK);
  CHECK(strcmp(hubrouter_error_message(NULL), "") == 0);
}

int main(int count, char **arguments) {
  CHECK(count == 3);
  struct handles h = {.store = arguments[1]};
  h.router = open_store(h.store);
  h.other = open_store(h.store);
  CHECK(hubrouter_policy_compile(h.router, TEXT("{\"candidates\": [\"gpt2\"]}"), &h.policy, NULL) ==
        HUBROUTER_OK);
  CHECK(hubrouter_policy_compile(h.router, TEXT("{\"where\": \"no_such_thing = 1\"}"), &h.nobody,
                                 NULL) == HUBROUTER_OK);
  CHECK(hubrouter_router_route(h.router, TEXT("Which bird?"), 5, NULL, &h.decision, NULL) ==
        HUBROUTER_OK);
  hubrouter_ranked before = {.size = sizeof before}, after = {.size = sizeof after};
  CHECK(hubrouter_decision_ranked(h.decision, 0, &before, NULL) == HUBROUTER_OK);

  check_null();
  long calls = atol(arguments[2]);
  for (long call = 0; call < calls; call++) {
    switch (draw(8)) {
      case 0: open_wrongly(&h); break;
      case 1: route_wrongly(&h); break;
      case 2: route_batch_wrongly(&h); break;
      case 3: compile_wrongly(&h); break;
      case 4: read_wrongly(&h); break;
      case 5: copy_wrongly(&h); break;
      case 6: name_wrongly(); break;
      default: swap_wrongly(&h);
    }
  }

  hubrouter_decision *again;
  CHECK(hubrouter_router_route(h.router, TEXT("Which bird?"), 5, NULL, &again, NULL) ==
        HUBROUTER_OK);
  CHECK(hubrouter_decision_ranked(again, 0, &after, NULL) == HUBROUTER_OK);
  CHECK(before.id == after.id && before.score == after.score);
  hubrouter_decision_free(again);
  hubrouter_decision_free(h.decision);
  hubrouter_policy_free(h.policy);
  hubrouter_policy_free(h.nobody);
  hubrouter_router_free(h.router);
  hubrouter_router_free(h.other);

  printf("%ld malformed calls:", calls);
  for (int status = 1; status < 128; status++)
    if (counts[status] > 0) printf(" %s %zu", hubrouter_status_name(status), counts[status]);
  printf("\n");
  return 0;
}
