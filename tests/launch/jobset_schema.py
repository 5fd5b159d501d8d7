"""The fields of a JobSet that the launch scripts may use, as structural OpenAPI.

Trimmed, and written from the reference pages of JobSet v1alpha2
(https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/) and of Kubernetes. `test_kubernetes.py`
compares it with the CustomResourceDefinition itself where JOBSET_CRD names a copy of that.
"""

from typing import Any

Schema = dict[str, Any]


def _object(required: str = "", **properties: Schema) -> Schema:
    return {"type": "object", "required": required.split(), "properties": properties}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


_TEXT: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer"}
_BOOLEAN: Schema = {"type": "boolean"}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}
_QUANTITY: Schema = {"x-kubernetes-int-or-string": True}

_CONTAINER = _object(
    "name",
    name=_TEXT,
    image=_TEXT,
    workingDir=_TEXT,
    command=_array(_TEXT),
    env=_array(_object("name", name=_TEXT, value=_TEXT)),
    securityContext=_object(privileged=_BOOLEAN),
    resources=_object(limits={"type": "object", "additionalProperties": _QUANTITY}),
    volumeMounts=_array(_object("name mountPath", name=_TEXT, mountPath=_TEXT)),
)
_POD = _object(
    "containers",
    restartPolicy=_TEXT,
    hostNetwork=_BOOLEAN,
    dnsPolicy=_TEXT,
    terminationGracePeriodSeconds=_INTEGER,
    nodeSelector=_TEXTS,
    tolerations=_array(_object(key=_TEXT, operator=_TEXT)),
    containers=_array(_CONTAINER),
    volumes=_array(
        _object(
            "name",
            name=_TEXT,
            nfs=_object("server path", server=_TEXT, path=_TEXT),
            emptyDir=_object(medium=_TEXT),
        )
    ),
)
_POD_FAILURE_RULE = _object(
    "action",
    action=_TEXT,
    onExitCodes=_object(
        "operator values", containerName=_TEXT, operator=_TEXT, values=_array(_INTEGER)
    ),
    onPodConditions=_array(_object("type", type=_TEXT, status=_TEXT)),
)
_JOB = _object(
    "template",
    parallelism=_INTEGER,
    completions=_INTEGER,
    completionMode=_TEXT,
    backoffLimit=_INTEGER,
    podFailurePolicy=_object("rules", rules=_array(_POD_FAILURE_RULE)),
    template=_object(spec=_POD),
)
_FAILURE_RULE = _object(
    "action name",
    name=_TEXT,
    action=_one_of("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    onJobFailureReasons=_array(_TEXT),
)
JOBSET = _object(
    "apiVersion kind spec",
    apiVersion=_one_of("jobset.x-k8s.io/v1alpha2"),
    kind=_one_of("JobSet"),
    metadata=_object(name=_TEXT, annotations=_TEXTS),
    spec=_object(
        ttlSecondsAfterFinished=_INTEGER,
        failurePolicy=_object(maxRestarts=_INTEGER, rules=_array(_FAILURE_RULE)),
        replicatedJobs=_array(
            _object("name template", name=_TEXT, replicas=_INTEGER, template=_object(spec=_JOB))
        ),
    ),
)
