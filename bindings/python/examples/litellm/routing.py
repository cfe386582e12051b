"""What routes in `config.yaml`: describe your deployments here."""

from hubrouter.litellm import ClassifierPlugin, Hook, RoutingPlugin

# `litellm_params.model` -> a model of the hub that is good at the same things. A model that is like
# none of the hub's has a card in words in place of the name:
#     {"card": {"model_name": "acme/x", "domain": "Translation", "description": "Translates .."}}
DEPLOYMENTS = {
    "openai/birds": "DBD-research-group/AudioProtoPNet-20-BirdSet-XCL",
    "openai/letters": "ByteDance-Seed/Seed-X-PPO-7B",
}

# router_settings.plugins: narrows the deployments of the group `auto`.
plugin = RoutingPlugin(deployments=DEPLOYMENTS)

# The same for the group `careful`, which acts on sure answers alone: docs/confidence.md.
careful = RoutingPlugin(
    group="careful", deployments=DEPLOYMENTS, policy={"abstain": {"min_confidence": 1.0}}
)

# litellm_settings.callbacks: x-hubrouter-* headers; and requests for `pick` get one of two groups.
hook = Hook(
    models=["birds", "letters"],
    group="pick",
    deployments={
        "birds": DEPLOYMENTS["openai/birds"],
        "letters": DEPLOYMENTS["openai/letters"],
    },
)

# complexity_router_config.classifier_plugin: a tier by the models that stand for it.
classifier = ClassifierPlugin(
    tiers={
        "SIMPLE": [DEPLOYMENTS["openai/letters"]],
        "COMPLEX": [DEPLOYMENTS["openai/birds"]],
    }
)
