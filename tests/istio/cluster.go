package main

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

// emptyCluster is a Kubernetes API server that has nothing: newer control planes do not start without
// one, also where their configuration comes from files.
func emptyCluster() http.Handler {
	lists := map[schema.GroupVersionResource]string{}
	for kind := range scheme.Scheme.AllKnownTypes() {
		resource, _ := meta.UnsafeGuessKindToResource(kind)
		lists[resource] = kind.Kind + "List"
	}
	path := regexp.MustCompile(`^/(?:api/|apis/([^/]+)/)([^/]+)(?:/namespaces/[^/]+)?/([^/]+)$`)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query, parts := r.URL.Query(), path.FindStringSubmatch(r.URL.Path)
		switch {
		case r.URL.Path == "/version":
			answer(w, http.StatusOK, map[string]any{"major": "1", "minor": "33", "gitVersion": "v1.33.0"})
		case r.Method != http.MethodGet || parts == nil:
			refuse(w, http.StatusNotFound, "NotFound")
		case query.Has("sendInitialEvents"):
			// What does not stream lists is asked for them.
			refuse(w, http.StatusUnprocessableEntity, "Invalid")
		case query.Has("watch"):
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			// Nothing ever happens.
			<-r.Context().Done()
		default:
			version := schema.GroupVersion{Group: parts[1], Version: parts[2]}
			kind := lists[version.WithResource(parts[3])]
			list := map[string]any{"kind": kind, "apiVersion": version.String()}
			if strings.Contains(r.Header.Get("Accept"), "PartialObjectMetadataList") {
				list = map[string]any{"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
			}
			list["metadata"] = map[string]any{"resourceVersion": "1"}
			list["items"] = []any{}
			answer(w, http.StatusOK, list)
		}
	})
}

func answer(w http.ResponseWriter, code int, body map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, code int, reason string) {
	answer(w, code, map[string]any{
		"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code,
	})
}
