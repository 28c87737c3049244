"""Keylime's own code on what `attestctl evidence export --keylime` wrote.

  keylime_judge.py replay REQUEST...          its functions: checks the quote, replays the log, applies the policy
  keylime_judge.py ask URL CA REQUEST...      its verifier, which runs at URL

Prints one JSON object a line: {"valid": bool, "failures": [type, ...]}; of `replay` also the PCRs.
"""

import base64
import json
import ssl
import sys
import urllib.request


def replay(request):
    from cryptography.hazmat.primitives import serialization
    from keylime.common.algorithms import Hash
    from keylime.ima import ima
    from keylime.tpm import tpm2_objects, tpm_util

    data = request["data"]
    attest, signature, pcrs = (base64.b64decode(part) for part in data["quote"][1:].split(":"))
    key = tpm2_objects.pubkey_from_tpm2b_public(base64.b64decode(data["tpm_ak"])).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    try:
        quoted = tpm_util.checkquote(key, data["nonce"], signature, attest, pcrs, "sha256")
    except Exception as e:
        return {"valid": False, "failures": ["quote: " + str(e)]}
    policy = json.loads(data["runtime_policy"])
    ima.validate_runtime_policy(policy)
    lines = data["ima_measurement_list"].split("\n")
    running, failure = ima.process_measurement_list(None, lines, policy, pcrval=quoted[10], hash_alg=Hash.SHA256)
    failures = [event.event_id for event in failure.events]
    return {"valid": not failures, "failures": failures, "pcrs": quoted, "replayed": running}


def ask(url, ca, request):
    body = json.dumps(request).encode()
    call = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(call, context=ssl.create_default_context(cafile=ca), timeout=30) as answer:
        results = json.load(answer)["results"]
    return {"valid": results["valid"], "failures": [failure["type"] for failure in results["failures"]]}


verb, words = sys.argv[1], sys.argv[2:]
if verb == "replay":
    judge = replay
else:
    url, ca, *words = words
    judge = lambda request: ask(url, ca, request)
for name in words:
    with open(name, encoding="utf-8") as file:
        print(json.dumps(judge(json.load(file))))
