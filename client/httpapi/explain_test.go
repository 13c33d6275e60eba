package httpapi

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/explain"
)

func TestExplain(t *testing.T) {
	reply := &explain.EvaluateReply{
		Meta: someMeta, Now: &explain.Explanation{Verdict: explain.Denied, Branches: []*explain.Branch{}},
		WhatIf: &explain.Explanation{Verdict: explain.Allowed}, Differences: []string{"verdict: denied -> allowed"},
	}
	s, f := newServer(t, Config{}, map[string]any{explain.EvaluateCall.Name: reply})
	want := explain.Request{
		From: "web", To: "db", Method: "PUT", Path: "/a?b=c", Host: "h", Port: 9000, Headers: []explain.Header{{Name: "X", Value: "1:2"}, {Name: "Y", Value: ""}},
	}
	w := do(s, "GET", "/v1/explain?from=web&to=db&method=PUT&path=%2Fa%3Fb%3Dc&host=h&port=9000&header=X:%201:2&header=Y:&token=secret&index=5", "")
	var got struct {
		Verdict     string
		WhatIf      struct{ Verdict string }
		Differences []string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 || got.Verdict != "denied" || got.WhatIf.Verdict != "allowed" || len(got.Differences) != 1 {
		t.Errorf("%d %s, %v", w.Code, w.Body, err)
	}
	req := last[explain.EvaluateRequest](t, f, explain.EvaluateCall.Name)
	if d := cmp.Diff(want, req.Request); d != "" || req.Token != "secret" || req.MinIndex != 0 {
		t.Errorf("asked with %+v: %s", req, d)
	}
	for _, method := range []string{"POST", "PUT"} {
		w = do(s, method, "/v1/explain", `{"From": "web", "To": "db", "JWT": "{}", "Headers": [{"Name": "a", "Value": "b"}], "WhatIf": [
			{"Kind": "service-resolver", "Name": "db", "ConnectTimeout": "3s"}, {"Delete": {"Kind": "service-router", "Name": "db"}}, {"Delete": {"Kind": "mesh"}}]}`)
		if w.Code != 200 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		req = last[explain.EvaluateRequest](t, f, explain.EvaluateCall.Name)
		if req.Request.JWT != "{}" || len(req.WhatIf) != 3 || entry.KeyOf(req.WhatIf[0].Entry) != (entry.Key{Kind: "service-resolver", Name: "db"}) ||
			*req.WhatIf[1].Delete != (entry.Key{Kind: "service-router", Name: "db"}) || req.WhatIf[2].Delete.Name != "mesh" {
			t.Errorf("asked with %+v", req)
		}
	}
	for _, tt := range []struct{ method, target, body string }{
		{"GET", "/v1/explain?from=web&to=db&jwt=a.b.c", ""},
		{"GET", "/v1/explain?from=web&to=db&header=x", ""},
		{"GET", "/v1/explain?from=web&to=db&port=x", ""},
		{"POST", "/v1/explain", `{"Frm": "web"}`},
		{"POST", "/v1/explain", `{"From": "web", "WhatIf": [{"Kind": "nonsense"}]}`},
		{"POST", "/v1/explain", `{"From": "web", "WhatIf": [{"Delete": {"Kind": "service-router"}}]}`},
		{"POST", "/v1/explain", `{"From": "web", "WhatIf": [{"Delete": {"Kind": "service-router", "Name": "a"}, "Kind": "mesh"}]}`},
		{"POST", "/v1/explain", `{`},
	} {
		if w := do(s, tt.method, tt.target, tt.body); w.Code != 400 {
			t.Errorf("%s %s %s: %d %s", tt.method, tt.target, tt.body, w.Code, w.Body)
		}
	}
}
