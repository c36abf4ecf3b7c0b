{{/* What a part is called: release and part. Arguments: root, part. */}}
{{- define "factory.name" -}}
{{- if not (regexMatch "^[a-z][-a-z0-9]*$" .root.Release.Name) -}}
{{- fail (printf "the release's name %s: expected a letter, then letters, digits and hyphens, as Kubernetes wants of a Service's" .root.Release.Name) -}}
{{- end -}}
{{- $name := printf "%s-%s" .root.Release.Name .part -}}
{{- if gt (len $name) 63 -}}
{{- fail (printf "the name %s has %d characters, of 63 that Kubernetes takes: shorten the release's or the part's" $name (len $name)) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* The labels by which a part's pods are found. Arguments: root, part, component. */}}
{{- define "factory.selector" -}}
app.kubernetes.io/name: factory
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- if .part }}
factory-agents/part: {{ .part | quote }}
{{- end }}
{{- end -}}

{{/* The labels of everything. Arguments: root, part, component. */}}
{{- define "factory.labels" -}}
{{ include "factory.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "factory.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion | replace "+" "_" }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A Deployment's pods, the same for every part. Arguments: root, part, component, settings, command, env (more of it), secrets (of the
environment), port (optional, with /livez and /readyz), grace, volumes and mounts (optional). */}}
{{- define "factory.podTemplate" -}}
metadata:
  labels:
    {{- include "factory.selector" . | nindent 4 }}
  {{- with .settings.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "factory.podSecurity" .root | nindent 2 }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int64 .grace }}
  {{- with .settings.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .settings.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "factory.selector" . | nindent 8 }}
  containers:
  - name: factory
    image: {{ .settings.image | default (include "factory.image" .root) | quote }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args:
    {{- range .command }}
    - {{ . | quote }}
    {{- end }}
    {{- with include "factory.env" . }}
    {{- . | nindent 4 }}
    {{- end }}
    envFrom:
    {{- range .secrets }}
    - secretRef:
        name: {{ . | quote }}
    {{- end }}
    {{- with .port }}
    ports:
    - name: metrics
      containerPort: {{ . }}
    startupProbe:
      httpGet: {path: /livez, port: metrics}
      periodSeconds: 2
      failureThreshold: 60
    livenessProbe:
      httpGet: {path: /livez, port: metrics}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 3
    readinessProbe:
      httpGet: {path: /readyz, port: metrics}
      periodSeconds: 2
      timeoutSeconds: 5
    {{- end }}
    resources:
      {{- toYaml .settings.resources | nindent 6 }}
    securityContext:
      {{- include "factory.containerSecurity" .root | nindent 6 }}
    volumeMounts:
    - name: tmp
      mountPath: /tmp
    {{- with .mounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
  - name: tmp
    emptyDir:
      sizeLimit: 1Gi
  {{- with .volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* A container's variables: everyone's, the part's, and those that it needs. Arguments: root, settings, env. */}}
{{- define "factory.env" -}}
{{- $env := mergeOverwrite dict (default dict .root.Values.env) (default dict .settings.env) .env -}}
{{- with .root.Values.prefix -}}
{{- $_ := set $env "FACTORY_PREFIX" . -}}
{{- end -}}
{{- with $env -}}
env:
{{- range $name, $value := . }}
- name: {{ $name | quote }}
  value: {{ include "factory.text" $value | quote }}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "factory.podSecurity" -}}
serviceAccountName: {{ .Release.Name | quote }}
automountServiceAccountToken: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "factory.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* A disruption budget: one pod of a part at a time, and broken ones are in nobody's way. Arguments: root, part, component. */}}
{{- define "factory.pdb" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "factory.name" . | quote }}
  labels:
    {{- include "factory.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "factory.selector" . | nindent 6 }}
{{- end -}}

{{/* An agent's consumer group; by default the program's own. Arguments: part, settings. */}}
{{- define "factory.group" -}}
{{- .settings.group | default (printf "factory.%s.%s" (.settings.agent | default .part | splitList ":" | last) .settings.inTopic) -}}
{{- end -}}

{{/* A value as it was written: YAML reads whole numbers as fractions, and Helm would write 1e+06. */}}
{{- define "factory.text" -}}
{{- if and (kindIs "float64" .) (eq (toString .) (toString (floor .))) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}
