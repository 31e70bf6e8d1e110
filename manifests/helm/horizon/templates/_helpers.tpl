{{/* Names are fixed where other objects (Secrets that people make, roles that people bind) speak of them. */}}
{{- define "horizon.labels" -}}
app.kubernetes.io/name: horizon
app.kubernetes.io/part-of: horizon
{{- end }}

{{- define "horizon.chart-labels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "horizon.selector" -}}
app.kubernetes.io/name: horizon
app.kubernetes.io/component: controller
{{- end }}

{{- define "horizon.metadata" -}}
name: {{ .name }}
{{- if not .cluster }}
namespace: {{ .namespace | default .root.Release.Namespace }}
{{- end }}
labels:
  app.kubernetes.io/component: controller
  {{- include "horizon.labels" .root | nindent 2 }}
  {{- include "horizon.chart-labels" .root | nindent 2 }}
{{- end }}

{{- define "horizon.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "horizon.kinds" -}}
accesspolicies approvals devicedecisions keyrotations personalkeys registrationkeys revocations rotationpolicies securitypolicies servers users virtualnetworks
{{- end }}

{{- define "horizon.subject" -}}
- kind: ServiceAccount
  name: horizon-controller
  namespace: {{ .Release.Namespace }}
{{- end }}

{{- define "horizon.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end }}

{{- define "horizon.secret-volume" -}}
secret:
  secretName: {{ .secret }}
  defaultMode: 0440
  {{- if .optional }}
  optional: true
  {{- end }}
  items:
  - key: {{ .key }}
    path: {{ .path }}
{{- end }}

{{- define "horizon.config" -}}
# Every setting is described in docs/configure.md.
source = "kubernetes"
data = "/var/lib/horizon"
listen = "[::]:7440"
metrics_listen = "[::]:7441"
{{- if .Values.rest.enabled }}
rest_listen = "[::]:7443"
rest_certificate = "/etc/horizon-secrets/rest/tls.crt"
rest_key = "/etc/horizon-secrets/rest/tls.key"
{{- end }}
{{- if eq .Values.mode "production" }}

database_url_file = "/etc/horizon-secrets/database/url"
migration_url_file = "/etc/horizon-secrets/migration/url"
{{- if .Values.redis.enabled }}
redis_url_file = "/etc/horizon-secrets/redis/url"
{{- end }}
keys_secret = "{{ .Release.Namespace }}/{{ .Values.keysSecret }}"
{{- end }}
{{- range $name, $value := .Values.settings }}
{{ $name }} = {{ toJson $value }}
{{- end }}
{{ end }}
