"""What the KubeRay operator knows of its resources (ray.io/v1), as its API reference of version 1.5 lists the
fields; pod templates are Kubernetes' own and are checked elsewhere. The operator drops fields that it does
not know without a word, so that a misspelled one would never be noticed.
"""

from typing import Any, Literal

import pydantic

Pod = dict[str, Any]
Words = dict[str, str]


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class AuthOptions(_Strict):
    mode: Literal["disabled", "token"]


class AutoscalerOptions(_Strict):
    resources: Pod | None = None
    image: str | None = None
    imagePullPolicy: str | None = None
    securityContext: Pod | None = None
    idleTimeoutSeconds: int | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    version: Literal["v1", "v2"] | None = None
    env: list[Pod] | None = None
    envFrom: list[Pod] | None = None
    volumeMounts: list[Pod] | None = None


class HeadGroup(_Strict):
    template: Pod
    rayStartParams: Words
    headService: Pod | None = None
    enableIngress: bool | None = None
    serviceType: str | None = None
    labels: Words | None = None
    resources: Words | None = None


class WorkerGroup(_Strict):
    groupName: str
    template: Pod
    rayStartParams: Words
    minReplicas: int
    maxReplicas: int
    replicas: int = 0
    suspend: bool | None = None
    numOfHosts: int = 1
    idleTimeoutSeconds: int | None = None
    scaleStrategy: Pod | None = None
    labels: Words | None = None
    resources: Words | None = None


class ClusterSpec(_Strict):
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]
    rayVersion: str
    authOptions: AuthOptions | None = None
    enableInTreeAutoscaling: bool | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    headServiceAnnotations: Words | None = None
    gcsFaultToleranceOptions: Pod | None = None
    managedBy: str | None = None
    suspend: bool | None = None


class SubmitterConfig(_Strict):
    backoffLimit: int


class JobSpec(_Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    clusterSelector: Words | None = None
    rayClusterSpec: ClusterSpec | None = None
    submitterPodTemplate: Pod | None = None
    submitterConfig: SubmitterConfig | None = None
    activeDeadlineSeconds: int | None = None
    backoffLimit: int | None = None
    runtimeEnvYAML: str | None = None
    metadata: Words | None = None
    jobId: str | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    entrypointResources: str | None = None
    ttlSecondsAfterFinished: int | None = None
    shutdownAfterJobFinishes: bool | None = None
    suspend: bool | None = None
    managedBy: str | None = None


class _Resource(_Strict):
    apiVersion: Literal["ray.io/v1"]
    metadata: Pod


class RayCluster(_Resource):
    kind: Literal["RayCluster"]
    spec: ClusterSpec


class RayJob(_Resource):
    kind: Literal["RayJob"]
    spec: JobSpec
