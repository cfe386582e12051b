/* ./threads STORE ROUNDS: eight threads share a router, a policy and a decision, while the main
 * thread refreshes and installs. Every answer is the one of a single thread, bit for bit. A second
 * router of the same process answers beside them. */
#include "common.h"

#include <pthread.h>

enum { THREADS = 8, PROMPTS = 4 };

static const char *const PROMPT[PROMPTS] = {
    "Which bird is singing?",
    "Translate this letter.",
    "Draw a fox in the snow.",
    "Who is speaking?",
};

/* Without times, a decision has the same bits whoever asks. */
struct answer {
  uint32_t id;
  float score, probability, margin;
  size_t tokens;
};

struct shared {
  const hubrouter_router *router, *other;
  const hubrouter_policy *policy;
  const hubrouter_decision *decision;
  struct answer free[PROMPTS], within[PROMPTS];
  int rounds;
};

static struct answer ask(const hubrouter_router *router, const char *prompt,
                         const hubrouter_policy *policy) {
  hubrouter_decision *decision;
  hubrouter_error *error;
  hubrouter_status status =
      hubrouter_router_route(router, prompt, strlen(prompt), 2, policy, &decision, &error);
  if (status != HUBROUTER_OK) fprintf(stderr, "%s\n", hubrouter_error_message(error));
  CHECK(status == HUBROUTER_OK && error == NULL);
  hubrouter_summary summary = {.size = sizeof summary};
  CHECK(hubrouter_decision_summary(decision, &summary, &error) == HUBROUTER_OK);
  CHECK(summary.ranked == 2);
  hubrouter_ranked best = {.size = sizeof best};
  CHECK(hubrouter_decision_ranked(decision, 0, &best, &error) == HUBROUTER_OK);
  CHECK(best.model.len > 0 && (policy == NULL) == (best.deployments == 0));
  struct answer answer = {best.id, best.score, best.probability, summary.margin, summary.tokens};
  hubrouter_decision_free(decision);
  return answer;
}

static int same(struct answer a, struct answer b) {
  return a.id == b.id && a.score == b.score && a.probability == b.probability &&
         a.margin == b.margin && a.tokens == b.tokens;
}

static void *work(void *argument) {
  const struct shared *shared = argument;
  for (int round = 0; round < shared->rounds; round++) {
    for (int n = 0; n < PROMPTS; n++) {
      CHECK(same(ask(shared->router, PROMPT[n], NULL), shared->free[n]));
      CHECK(same(ask(shared->router, PROMPT[n], shared->policy), shared->within[n]));
    }
    CHECK(same(ask(shared->other, PROMPT[0], NULL), shared->free[0]));

    char json[65536];
    size_t length;
    hubrouter_error *error;
    CHECK(hubrouter_decision_json(shared->decision, json, sizeof json, &length, &error) ==
          HUBROUTER_OK);
    CHECK(length > 2 && json[0] == '{' && json[length - 1] == '}');

    hubrouter_decision *none;
    CHECK(hubrouter_router_route(shared->router, NULL, 0, 1, NULL, &none, &error) ==
          HUBROUTER_INVALID_REQUEST);
    CHECK(none == NULL && strlen(hubrouter_error_message(error)) > 0);
    hubrouter_error_free(error);
  }
  return NULL;
}

int main(int count, char **arguments) {
  CHECK(count == 3);
  hubrouter_router *router = open_store(arguments[1]), *other = open_store(arguments[1]);
  hubrouter_error *error;
  hubrouter_policy *policy;
  hubrouter_str names[] = {{TEXT("gpt2")}, {TEXT("google/flan-t5-xxl")}};
  CHECK(hubrouter_policy_candidates(router, names, 2, &policy, &error) == HUBROUTER_OK);
  hubrouter_decision *decision;
  CHECK(hubrouter_router_route(router, TEXT("Who?"), 5, NULL, &decision, &error) == HUBROUTER_OK);

  struct shared shared = {.router = router, .other = other, .policy = policy, .decision = decision};
  shared.rounds = atoi(arguments[2]);
  for (int n = 0; n < PROMPTS; n++) {
    shared.free[n] = ask(router, PROMPT[n], NULL);
    shared.within[n] = ask(router, PROMPT[n], policy);
  }
  pthread_t threads[THREADS];
  for (int n = 0; n < THREADS; n++) CHECK(pthread_create(&threads[n], NULL, work, &shared) == 0);

  char generation[64];
  size_t length;
  int32_t changed;
  CHECK(hubrouter_router_generation(router, generation, sizeof generation, &length, &error) ==
        HUBROUTER_OK);
  for (int round = 0; round < shared.rounds; round++) {
    CHECK(hubrouter_router_refresh(router, &changed, &error) == HUBROUTER_OK && changed == 0);
    CHECK(hubrouter_router_install(router, generation, length, &error) == HUBROUTER_OK);
  }
  for (int n = 0; n < THREADS; n++) CHECK(pthread_join(threads[n], NULL) == 0);

  /* In another order than they were made. */
  hubrouter_router_free(router);
  hubrouter_router_free(other);
  hubrouter_summary summary = {.size = sizeof summary};
  CHECK(hubrouter_decision_summary(decision, &summary, &error) == HUBROUTER_OK);
  CHECK(summary.ranked == 5);
  size_t eligible;
  CHECK(hubrouter_policy_eligible(policy, &eligible, &error) == HUBROUTER_OK && eligible == 2);
  hubrouter_decision_free(decision);
  hubrouter_policy_free(policy);
  printf("%d threads, %d rounds: every answer the same\n", THREADS, shared.rounds);
  return 0;
}
