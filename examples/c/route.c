/* Ranks models for prompts, from C: ./route STORE PROMPT... */
#include <hubrouter.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* True if a call failed. Says why, and frees the error: by its place, since C may read a second
 * argument before it makes the call in the first. */
static int failed(hubrouter_status status, hubrouter_error **error) {
  if (status == HUBROUTER_OK) return 0;
  fprintf(stderr, "%s: %s\n", hubrouter_status_name(status), hubrouter_error_message(*error));
  hubrouter_error_free(*error);
  return 1;
}

static int print(const hubrouter_decision *decision) {
  hubrouter_error *error;
  hubrouter_summary summary = {.size = sizeof summary};
  if (failed(hubrouter_decision_summary(decision, &summary, &error), &error)) return 1;
  for (size_t n = 0; n < summary.ranked; n++) {
    hubrouter_ranked model = {.size = sizeof model};
    if (failed(hubrouter_decision_ranked(decision, n, &model, &error), &error)) return 1;
    printf("%6.2f %%  %.*s (%.*s)\n", 100 * (double)model.probability, (int)model.model.len,
           model.model.ptr, (int)model.domain.len, model.domain.ptr);
  }
  return 0;
}

/* The same as JSON: the length first, then the text. */
static int print_json(const hubrouter_decision *decision) {
  hubrouter_error *error;
  size_t length;
  if (failed(hubrouter_decision_json(decision, NULL, 0, &length, &error), &error)) return 1;
  char *json = malloc(length);
  if (json == NULL) return 1;
  int bad = failed(hubrouter_decision_json(decision, json, length, &length, &error), &error);
  if (!bad) printf("%.*s\n", (int)length, json);
  free(json);
  return bad;
}

int main(int count, char **arguments) {
  if (count < 3) {
    fprintf(stderr, "usage: %s STORE PROMPT...\n", arguments[0]);
    return 2;
  }
  const char *store = arguments[1];
  const char *options = "{\"device\": \"cpu\", \"threads\": 1}";
  hubrouter_error *error;
  hubrouter_router *router;
  if (failed(hubrouter_router_open(store, strlen(store), options, strlen(options), &router, &error),
             &error))
    return 1;

  int bad = 0;
  for (int n = 2; n < count && !bad; n++) {
    const char *prompt = arguments[n];
    hubrouter_decision *decision;
    hubrouter_status status =
        hubrouter_router_route(router, prompt, strlen(prompt), 3, NULL, &decision, &error);
    bad = failed(status, &error) || print(decision) || print_json(decision);
    hubrouter_decision_free(decision);
  }

  /* Among two models only. A handle is compiled once and serves any number of requests. */
  hubrouter_str names[] = {{"gpt2", 4}, {"google/flan-t5-xxl", 18}};
  hubrouter_policy *policy = NULL;
  if (!bad) bad = failed(hubrouter_policy_candidates(router, names, 2, &policy, &error), &error);
  if (!bad) {
    const char *prompt = arguments[2];
    hubrouter_decision *decision;
    hubrouter_status status =
        hubrouter_router_route(router, prompt, strlen(prompt), 1, policy, &decision, &error);
    bad = failed(status, &error) || print(decision);
    hubrouter_decision_free(decision);
  }
  hubrouter_policy_free(policy);
  hubrouter_router_free(router);
  return bad;
}
