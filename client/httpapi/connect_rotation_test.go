package httpapi

import (
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect/ca"
)

func TestRotation(t *testing.T) {
	var asked *ca.RotationRequest
	var started *ca.RotateRequest
	s, _ := newServer(t, Config{}, map[string]any{
		ca.RotationCall.Name: func(req any) (any, error) {
			asked = req.(*ca.RotationRequest)
			return &ca.Rotation{
				Phase: ca.PhaseSpreading, NewRootID: "b", OldRootIDs: []string{"a"}, Required: 2, Confirmed: 1, Index: 12,
				Nodes: []*ca.RotationNode{{Node: "n1", Waiting: []string{"web"}}},
			}, nil
		},
		ca.RotateCall.Name: func(req any) (any, error) {
			started = req.(*ca.RotateRequest)
			return &struct{}{}, nil
		},
	})
	w := do(s, "GET", "/v1/connect/ca/rotation?index=3&wait=2s", "")
	if w.Code != 200 || w.Header().Get("X-Consul-Index") != "12" || asked.MinIndex != 3 || asked.MaxWait != 2*time.Second {
		t.Errorf("%d %v, asked with %+v", w.Code, w.Header(), asked)
	}
	for _, want := range []string{`"Phase":"spreading"`, `"NewRootID":"b"`, `"OldRootIDs":["a"]`, `"Required":2`, `"Waiting":["web"]`} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s is not in %s", want, w.Body)
		}
	}
	if strings.Contains(w.Body.String(), `"Index"`) {
		t.Error(w.Body)
	}
	if w = do(s, "PUT", "/v1/connect/ca/rotation", ""); w.Code != 200 || *started != (ca.RotateRequest{Target: started.Target}) {
		t.Errorf("%d %s, started %+v", w.Code, w.Body, started)
	}
	w = do(s, "PUT", "/v1/connect/ca/rotation", `{"PrivateKeyType": "rsa", "PrivateKeyBits": 4096, "Force": true, "Token": "stolen"}`)
	if w.Code != 200 || started.PrivateKeyType != "rsa" || started.PrivateKeyBits != 4096 || !started.Force || started.Token == "stolen" {
		t.Errorf("%d %s, started %+v", w.Code, w.Body, started)
	}
	if w = do(s, "PUT", "/v1/connect/ca/rotation", `{`); w.Code != 400 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
