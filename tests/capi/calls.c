/* ./calls STORE ENCODER: every function once, with success. STORE has two generations, g0002 and
 * its parent, and is the test's own. The ways to ask give the same answer. */
#include "common.h"

static hubrouter_error *error;

/* Runs a call that has to succeed. */
#define DO(call)                                                                        \
  do {                                                                                  \
    hubrouter_status status = (call);                                                   \
    if (status != HUBROUTER_OK) fprintf(stderr, "%s\n", hubrouter_error_message(error)); \
    CHECK(status == HUBROUTER_OK && error == NULL);                                     \
  } while (0)

typedef hubrouter_status (*copy_of_router)(const hubrouter_router *, char *, size_t, size_t *,
                                           hubrouter_error **);

/* A text of the router as a string of C. */
static char *text_of(copy_of_router copy, const hubrouter_router *router) {
  size_t length, again;
  DO(copy(router, NULL, 0, &length, &error));
  char *text = malloc(length + 1);
  CHECK(text != NULL);
  DO(copy(router, text, length, &again, &error));
  CHECK(again == length);
  text[length] = '\0';
  return text;
}

static void has(copy_of_router copy, const hubrouter_router *router, const char *part) {
  char *text = text_of(copy, router);
  if (strstr(text, part) == NULL) fprintf(stderr, "expected %s in %s\n", part, text);
  CHECK(strstr(text, part) != NULL);
  free(text);
}

static hubrouter_ranked best_of(const hubrouter_decision *decision) {
  hubrouter_ranked best = {.size = sizeof best};
  DO(hubrouter_decision_ranked(decision, 0, &best, &error));
  CHECK(best.size == sizeof best && best.model.len > 0 && best.domain.len > 0);
  CHECK(best.probability > 0 && best.probability <= 1 && best.cosine >= -1 && best.cosine <= 1);
  return best;
}

static int is(hubrouter_str text, const char *want) {
  return text.len == strlen(want) && memcmp(text.ptr, want, text.len) == 0;
}

int main(int count, char **arguments) {
  CHECK(count == 3);
  const char *store = arguments[1];
  char options[4096];
  snprintf(options, sizeof options,
           "{\"device\": \"cpu\", \"threads\": 2, \"cache_bytes\": 1000000, \"look_in\": [\"%s\"]}",
           arguments[2]);

  /* Through the table, as a host does that has opened the library by itself. */
  const hubrouter_functions *hub = hubrouter_api(1);
  hubrouter_router *router;
  DO(hub->hubrouter_router_open(store, strlen(store), options, strlen(options), &router, &error));
  has(hubrouter_router_generation, router, "g0002-");
  has(hubrouter_router_json, router, "\"device\":\"cpu\"");
  has(hubrouter_router_json, router, "\"threads\":2");
  has(hubrouter_router_json, router, "\"stats\":{");
  has(hubrouter_router_hub, router, "\"name\":\"gpt2\"");
  DO(hubrouter_router_warm_up(router, &error));

  /* One prompt, five ways. */
  static const char PROMPT[] = "Which bird is singing?";
  static const char REQUEST[] =
      "{\"prompt\": \"Which bird is singing?\", \"top\": 3, \"prompt_id\": \"seven\"}";
  static const char *const CHAT[] = {
      "{\"messages\": [{\"role\": \"user\", \"content\": \"Which bird is singing?\"}]}",
      "{\"messages\": [{\"role\": \"user\", \"content\": \"Which bird is singing?\"}]}",
      "{\"input\": \"Which bird is singing?\"}",
      "{\"messages\": [{\"role\": \"user\", \"content\": \"Which bird is singing?\"}]}",
  };
  hubrouter_decision *decision, *other;
  DO(hubrouter_router_route(router, TEXT(PROMPT), 3, NULL, &decision, &error));
  hubrouter_ranked best = best_of(decision), found;
  hubrouter_summary summary = {.size = sizeof summary};
  DO(hubrouter_decision_summary(decision, &summary, &error));
  CHECK(summary.ranked == 3 && summary.domains > 1 && summary.tokens == 7 && summary.eligible == 0);
  CHECK(summary.domain_confidence > 0.5f && summary.domain_confidence <= 1);
  CHECK(summary.model_confidence > 0 && summary.out_of_distribution < 1);
  CHECK(summary.cached == 0 && summary.abstained.ptr == NULL);
  CHECK(summary.truncated == 0 && summary.unknown == 0 && summary.margin > 0);
  CHECK(summary.total_us > 0 && is(summary.device, "cpu") && is(summary.prompt_id, ""));
  CHECK(summary.degraded.ptr == NULL && summary.fallback.ptr == NULL);
  CHECK(best.deployment.ptr == NULL && best.deployments == 0 && best.utility != best.utility);

  DO(hubrouter_router_route_json(router, TEXT(REQUEST), NULL, &other, &error));
  found = best_of(other);
  CHECK(found.id == best.id && found.score == best.score);
  DO(hubrouter_decision_summary(other, &summary, &error));
  CHECK(is(summary.prompt_id, "seven") && summary.ranked == 3 && summary.cached == 1);
  hubrouter_decision_free(other);

  for (int32_t shape = HUBROUTER_CHAT_ANY; shape <= HUBROUTER_CHAT_ANTHROPIC; shape++) {
    const char *body = CHAT[shape];
    const char *rest = shape == HUBROUTER_CHAT_ANY ? "" : "{\"top\": 4, \"prompt_id\": \"eight\"}";
    DO(hubrouter_router_route_chat(router, body, strlen(body), shape, rest, strlen(rest), NULL,
                                   &other, &error));
    found = best_of(other);
    CHECK(found.id == best.id && found.score == best.score);
    DO(hubrouter_decision_summary(other, &summary, &error));
    CHECK(summary.ranked == (*rest ? 4 : 10) && is(summary.prompt_id, *rest ? "eight" : ""));
    hubrouter_decision_free(other);
  }

  static const char BODY[] = "{\"a\": 1.0, \"model\" : \"au\\u0074o\", \"b\": [{\"model\": \"no\"}]}";
  static const char CHANGED[] = "{\"a\": 1.0, \"model\" : \"x\\\"y\", \"b\": [{\"model\": \"no\"}]}";
  char rewritten[sizeof BODY + 6 * 3 + 2];
  size_t length = 0;
  DO(hubrouter_chat_model(TEXT(BODY), rewritten, sizeof rewritten, &length, &error));
  CHECK(length == 4 && memcmp(rewritten, "auto", 4) == 0);
  DO(hubrouter_chat_with_model(TEXT(BODY), TEXT("x\"y"), rewritten, sizeof rewritten, &length, &error));
  CHECK(length == sizeof CHANGED - 1 && memcmp(rewritten, CHANGED, length) == 0);

  hubrouter_str prompts[] = {{TEXT("Who?")}, {TEXT(PROMPT)}};
  hubrouter_decision *decisions[2];
  hubrouter_error *errors[2];
  DO(hubrouter_router_route_batch(router, prompts, 2, 3, NULL, decisions, errors, &error));
  CHECK(errors[0] == NULL && errors[1] == NULL);
  found = best_of(decisions[1]);
  CHECK(found.id == best.id && found.score == best.score);
  hubrouter_decision_free(decisions[0]);
  hubrouter_decision_free(decisions[1]);
  DO(hubrouter_router_route_batch(router, NULL, 0, 3, NULL, NULL, NULL, &error));

  hubrouter_domain domain = {.size = sizeof domain};
  DO(hubrouter_decision_domain(decision, 0, &domain, &error));
  CHECK(domain.domain.len > 0 && domain.probability >= best.probability);

  /* Policies: two deployments of one model, the cheaper first. */
  static const char POLICY[] =
      "{\"candidates\": [{\"name\": \"dear\", \"model\": \"gpt2\", \"attributes\": {\"price\": 2}},"
      "{\"name\": \"cheap\", \"model\": \"gpt2\", \"attributes\": {\"price\": 1}}],"
      "\"where\": \"price < 1\", \"fallbacks\": [\"price <= 2\"], \"prefer\": {\"cost\": 0.5}}";
  hubrouter_policy *policy;
  DO(hubrouter_policy_compile(router, TEXT(POLICY), &policy, &error));
  size_t eligible;
  DO(hubrouter_policy_eligible(policy, &eligible, &error));
  CHECK(eligible == 1);
  char report[4096];
  DO(hubrouter_policy_json(policy, report, sizeof report - 1, &length, &error));
  report[length] = '\0';
  CHECK(strstr(report, "\"eligible\":1") != NULL && strstr(report, "\"fallbacks\":[") != NULL);
  DO(hubrouter_router_route(router, TEXT(PROMPT), 3, policy, &other, &error));
  found = best_of(other);
  CHECK(is(found.model, "gpt2") && is(found.deployment, "cheap") && found.deployments == 2);
  CHECK(found.utility == (double)found.score - 0.5);
  hubrouter_str name;
  DO(hubrouter_decision_deployment(other, 0, 1, &name, &error));
  CHECK(is(name, "dear"));
  DO(hubrouter_decision_summary(other, &summary, &error));
  CHECK(summary.ranked == 1 && summary.eligible == 1 && is(summary.fallback, "price <= 2"));
  CHECK(summary.margin != summary.margin);
  hubrouter_decision_free(other);

  /* To the parent, back, and what the store says. */
  char *newest = text_of(hubrouter_router_generation, router);
  int32_t changed;
  DO(hubrouter_router_refresh(router, &changed, &error));
  CHECK(changed == 0);
  DO(hubrouter_router_rollback(router, &error));
  has(hubrouter_router_generation, router, "g0001-");
  DO(hubrouter_router_route(router, TEXT(PROMPT), 3, policy, &other, &error));
  hubrouter_decision_free(other);
  CHECK(hubrouter_router_rollback(router, &error) == HUBROUTER_REFUSED);
  hubrouter_error_free(error);
  DO(hubrouter_router_install(router, newest, strlen(newest), &error));
  has(hubrouter_router_generation, router, newest);
  DO(hubrouter_router_refresh(router, &changed, &error));
  CHECK(changed == 1);
  has(hubrouter_router_generation, router, "g0001-");

  hubrouter_router *pinned;
  DO(hubrouter_router_open_generation(store, strlen(store), newest, strlen(newest), options,
                                      strlen(options), &pinned, &error));
  has(hubrouter_router_generation, pinned, newest);
  hubrouter_decision *again;
  DO(hubrouter_router_route(pinned, TEXT(PROMPT), 3, NULL, &again, &error));
  found = best_of(again);
  CHECK(found.id == best.id && found.score == best.score);

  /* What was read lives on without its router. */
  hubrouter_router_free(router);
  hubrouter_router_free(pinned);
  DO(hubrouter_policy_eligible(policy, &eligible, &error));
  CHECK(best.model.len > 0 && best.model.ptr[0] != '\0');
  hubrouter_policy_free(policy);
  hubrouter_decision_free(again);
  hubrouter_decision_free(decision);
  free(newest);
  printf("every function, with success\n");
  return 0;
}
