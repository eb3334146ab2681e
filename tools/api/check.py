"""Compares the nodes of a demo cluster with their OpenAPI description. See README.md."""

import argparse
import copy
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent

# Every route stands in one of these; a new one has to be put somewhere.
HARMLESS = {
    "looks at things": [
        "/api/openapi.json", "/api/status", "/api/events", "/api/review", "/api/lag", "/metrics",
        "/api/metrics", "/api/alerts", "/api/alerts/rules", "/api/slots", "/api/drills",
        "/api/drill/plan", "/api/drill/progress",
    ],
    "changes what the cluster is well without": [
        "/api/token", "/api/alerts/silence", "/api/alerts/unsilence", "/api/slots/drop",
        "/api/slots/ack", "/api/validate",
    ],
    "is refused while no drill is under way, or finds nothing to do": [
        "/api/drill/abort", "/api/drill/fault", "/api/drill/heal", "/api/drill/stage",
        "/api/drill/clear",
    ],
}
# Those of them that a standby's node may have to ask another one for.
PASSED_ON = [
    "/api/slots", "/api/slots/drop", "/api/slots/ack", "/api/validate", "/api/drill/progress",
]
# Needs a cluster that is whole, so it comes first; later there is a report to look at.
DRILL = ["/api/drill"]
# The document as it was is put back afterwards.
SETTINGS = ["/api/config"]
# The cluster must recover from these by itself, once automation is resumed and drills are ended.
WILD = [
    "/api/switchover", "/api/failover", "/api/pause", "/api/resume", "/api/restart", "/api/rebuild",
]
# Nodes that are gone do not come back: these are the last.
LAST = ["/api/remove", "/api/standalone"]

CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "negative_data_rejection",
    "positive_data_acceptance", "unsupported_method", "allow_header_conformance",
]
# Not among them: ignored_auth. It shows wrong tokens, and after ten of them nobody is listened to.
# `access` asks for the same of every route.
WRONG_TOKENS = 10

# Nothing that a demo has is what these do something with: no slot, and no drill at that moment.
REFUSED_ALWAYS = [
    "/api/slots/drop", "/api/slots/ack", "/api/drill/abort", "/api/drill/fault", "/api/drill/stage",
]

# How long a hurt cluster may take until every node has its place again.
RECOVERY_SECONDS = 180
# How long a drill may take until it is aborted.
DRILL_SECONDS = 90

problems = []


def problem(text):
    print(f"PROBLEM: {text}", flush=True)
    problems.append(text)


class Node:
    def __init__(self, name, port, directory):
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.token = (directory / name / "admin.token").read_text().strip()

    def ask(self, method, path, body=None, token=None):
        """Status, headers and text of an answer."""
        headers = {"content-type": "application/json"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def get(self, path):
        return json.loads(self.ask("GET", path)[2])

    def act(self, path, body=None):
        return self.ask("POST", path, {} if body is None else body, self.token)


def operations(description):
    return [(path, method) for path, item in description["paths"].items() for method in item]


def sorted_out(description):
    groups = [*HARMLESS.values(), DRILL, SETTINGS, WILD, LAST]
    known = Counter(path for group in groups for path in group)
    for path in set(description["paths"]) | set(known):
        if known[path] != 1 or path not in description["paths"]:
            problem(f"{path} must be described, and stand in one of the groups of tools/api/check.py")


def strict(description):
    """The same, with answers that have nothing but what is described."""
    description = copy.deepcopy(description)

    def close(value):
        if isinstance(value, dict):
            if value.get("type") == "object" and "properties" in value:
                value.setdefault("additionalProperties", False)
            value = list(value.values())
        if isinstance(value, list):
            for inner in value:
                close(inner)

    close(description)
    return description


def access(node, description):
    """Whatever acts needs the token, and says so; looking needs nothing."""
    refused = 0
    for path, method in operations(description):
        status, headers, body = node.ask(method.upper(), path, {} if method == "post" else None)
        told = headers.get("www-authenticate") == "Bearer" and "error" in json.loads(body or "{}")
        if method == "post" and (status != 401 or not told):
            problem(f"{method} {path} without a token: {status}")
        if method == "get" and status in (401, 403):
            problem(f"{method} {path} asks for a token")
        refused += method == "post"
    statuses = [node.ask("POST", "/api/resume", {}, "wrong")[0] for _ in range(WRONG_TOKENS + 1)]
    if statuses != [401] * WRONG_TOKENS + [429]:
        problem(f"{WRONG_TOKENS + 1} wrong tokens: {statuses}")
    if node.ask("POST", "/api/resume", {}, node.token)[0] != 429:
        problem("after too many wrong tokens the right one is taken at once")
    print(f"{refused} routes that act ask for the token; guessing ends after {WRONG_TOKENS} times")


def fuzz(args, name, node, paths, examples, may_fail=()):
    """Runs the client on some routes of one node; counts answers by operation and status."""
    print(f"\n--- {name}, at {node.name}", flush=True)
    counts = args.work / "counts.json"
    config = args.work / "schemathesis.toml"
    fine = json.dumps(["2xx", "3xx", "4xx", *may_fail])
    config.write_text(f"[checks]\nnot_a_server_error.expected-statuses = {fine}\n")
    words = [
        str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config), "run",
        str(args.work / "strict.json"), "--url", node.url,
        "--header", f"Authorization: Bearer {node.token}", "--checks", ",".join(CHECKS),
        "--phases", "examples,coverage,fuzzing", "--max-examples", str(examples),
        "--seed", str(args.seed), "--continue-on-failure", "--request-timeout", "60",
        "--warnings", "off", "--no-color",
    ]
    for path in paths:
        words += ["--include-path", path]
    env = {**os.environ, "PYTHONPATH": str(HERE), "SCHEMATHESIS_HOOKS": "hooks",
           "QUORATE_API_COUNTS": str(counts)}
    if subprocess.run(words, env=env, cwd=args.work).returncode != 0:
        problem(f"{name}, at {node.name}: see above")
    counted = Counter(json.loads(counts.read_text()))
    if any(key.endswith(" 429") for key in counted):
        problem(f"{name}: some requests were not listened to, and tell nothing")
    return counted


def whole(node):
    """Why not every node has its place; None when it has."""
    status = node.get("/api/status")
    lacking = [
        name for name, member in status["nodes"].items()
        if (member["status"] or {}).get("doing") not in ("writing", "following")
    ]
    rules = status["authority"]["rules"]
    if status["phase"] != "serving" or status["paused"]:
        return f"phase {status['phase']}, paused: {status['paused']}"
    if lacking or len(rules) != 1 or len(rules[0]["cohort"]) != len(status["nodes"]):
        return f"not in their place: {lacking}; {len(rules)} rules"
    return f"drill {under_way['id']}" if (under_way := node.get("/api/drills")["under_way"]) else None


def drilled(node):
    """Lets a drill come to its end."""
    began = time.monotonic()
    while node.get("/api/drills")["under_way"] and time.monotonic() - began < DRILL_SECONDS:
        time.sleep(1)
    past = node.get("/api/drills")["past"]
    print(*(f"drill {drill['drill']}: {drill['sentence']}" for drill in past), sep="\n")
    if not past:
        problem("no drill was done: the routes of drills were not looked at")


def recover(nodes, document):
    """Ends what was begun, and waits until all is as before."""
    began = time.monotonic()
    why = "nobody answers"
    while time.monotonic() - began < RECOVERY_SECONDS:
        for node in nodes:
            try:
                if node.get("/api/status")["paused"]:
                    node.act("/api/resume")
                if node.get("/api/drills")["under_way"]:
                    node.act("/api/drill/abort")
                version = node.get("/api/config")[-1]
                if version["document"] != document:
                    ask = {"expect_version": version["version"], "document": document}
                    node.act("/api/config", ask)
                    why = "the document is not as before"
                elif (why := whole(node)) is None:
                    print(f"the cluster is whole again after {time.monotonic() - began:.0f} s")
                    return
            except OSError as error:
                why = f"{node.name}: {error}"
        time.sleep(1)
    problem(f"the cluster is not whole after {RECOVERY_SECONDS} s: {why}")


def table(counted, description):
    rows = {}
    for key, times in counted.items():
        method, path, status = key.split()
        rows.setdefault((path, method), Counter())[status] += times
    print(f"\n{'route':34} {'requests':>8}  answers")
    for path, method in operations(description):
        answers = rows.get((path, method.upper()), Counter())
        told = ", ".join(f"{times} × {status}" for status, times in sorted(answers.items()))
        print(f"{method.upper():4} {path:29} {answers.total():>8}  {told}")
        if not any(status.startswith("2") for status in answers) and path not in REFUSED_ALWAYS:
            problem(f"{method} {path} never did what it is for")
    print(f"{len(rows)} routes, {counted.total()} requests")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="directory of the demo")
    parser.add_argument("--port", type=int, required=True, help="first port of the demo")
    parser.add_argument("--work", type=Path, required=True, help="where to put files")
    parser.add_argument("--examples", type=int, required=True, help="made-up requests for each route")
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    nodes = [Node(f"n{i}", args.port + 5 + i, args.dir) for i in (1, 2, 3)]
    n1, n2, n3 = nodes
    description = n1.get("/api/openapi.json")
    document = n1.get("/api/config")[-1]["document"]
    args.work.mkdir(parents=True, exist_ok=True)
    description_of_answers = strict(description)
    write = (args.work / "strict.json").write_text
    write(json.dumps(description_of_answers))
    sorted_out(description)
    harmless = [path for group in HARMLESS.values() for path in group]
    few = max(1, args.examples // 5)
    # A cluster that is hurt may say 503 and 504, and nothing else may.
    counted = fuzz(args, "drills", n1, DRILL, few, ("503",))
    drilled(n1)
    recover(nodes, document)
    counted += fuzz(args, "settings", n1, SETTINGS, args.examples, ("503",))
    recover(nodes, document)
    counted += fuzz(args, "disturbing routes", n2, WILD, few, ("503", "504"))
    recover(nodes, document)
    counted += fuzz(args, "harmless routes", n1, harmless, args.examples)
    counted += fuzz(args, "routes that are passed on", n2, PASSED_ON, args.examples)
    access(n3, description)
    # The client tries the examples of the description: one of them is to be removed.
    writer = n1.get("/api/status")["writer"]
    leaves = next(node.name for node in (n3, n1) if node.name != writer)
    remove = description_of_answers["paths"]["/api/remove"]["post"]["requestBody"]
    remove["content"]["application/json"]["example"]["node"] = leaves
    write(json.dumps(description_of_answers))
    counted += fuzz(args, "routes of no return", n2, LAST, few, ("503", "504"))
    for node in nodes:
        if "panicked" in (args.dir / f"{node.name}.log").read_text(errors="replace"):
            problem(f"{node.name} panicked: see its log")
    table(counted, description)
    print(f"seed {args.seed}: {len(problems)} problems", *problems, sep="\n  ")
    sys.exit(bool(problems))


main()
