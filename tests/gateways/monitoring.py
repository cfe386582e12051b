"""Asks Prometheus every expression of the dashboard and of the rules, and compares names."""

import json
import pathlib
import re
import sys
import urllib.parse
import urllib.request

server, metrics, folder = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
dashboard = json.loads((folder / "dashboard.json").read_text())
rules = (folder / "alerts.yml").read_text()
NAME = r"\b(?:hubrouter|process)_[a-z_]+\b"

printed = set(re.findall(r"^(?:hubrouter|process)_[a-z_]+", metrics.read_text(), re.M))
expressions = [(panel["title"], target["expr"])
               for panel in dashboard["panels"] for target in panel["targets"]]
assert len(expressions) > 15, len(expressions)
used = set()
for _, expression in expressions:
    used |= set(re.findall(NAME, expression))
used |= {name for name in re.findall(NAME, rules)
         if not name.startswith("hubrouter_gateway_alert")}
unknown = used - printed
assert not unknown, f"/metrics does not print {sorted(unknown)}"


def ask(path, **query):
    address = f"{server}{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(address, timeout=30) as response:
        return json.load(response)["data"]


for title, expression in expressions:
    expression = expression.replace("$__rate_interval", "10s").replace("$instance", ".*")
    result = ask("/api/v1/query", query=expression)["result"]
    assert result, f"{title}: no answer to {expression}"
    print(f"{title:<32} {len(result):>3} series, first {result[0]['value'][1]}")

groups = ask("/api/v1/rules")["groups"]
health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
assert len(health) == rules.count("- alert:"), health
assert set(health.values()) == {"ok"}, health
unused = sorted(printed - used - {name for name in printed
                                  if re.sub(r"_(sum|count|bucket)$", "_bucket", name) in used})
print("in no panel and no rule:", ", ".join(unused) or "none")
targets = ask("/api/v1/targets")["activeTargets"]
assert [target["health"] for target in targets] == ["up"], targets
