package connectcmd

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/sarnmesh/sarn/command/verb"
)

// rotations is an agent that tells of one state of a rotation after another.
type rotations struct {
	mu     sync.Mutex
	states []string // JSON, or a status
	next   int
	asked  []string // for what index
	body   string   // of the last PUT
}

func (a *rotations) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.URL.Path != rotationPath {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if r.Method == http.MethodPut {
		data, _ := io.ReadAll(r.Body)
		a.body = string(data)
		return
	}
	a.asked = append(a.asked, r.URL.Query().Get("index"))
	state := a.states[min(a.next, len(a.states)-1)]
	a.next++
	if code, err := strconv.Atoi(state); err == nil {
		w.WriteHeader(code)
		io.WriteString(w, "No cluster leader")
		return
	}
	w.Header().Set("X-Consul-Index", string(rune('0'+a.next)))
	io.WriteString(w, state)
}

// rotateCLI runs the command against an agent.
func rotateCLI(t *testing.T, a *rotations, args ...string) (out, errs string, code int) {
	t.Helper()
	srv := httptest.NewServer(a)
	defer srv.Close()
	var stdout, stderr bytes.Buffer
	for _, v := range Verbs() {
		if v.Path != "connect ca rotate" {
			continue
		}
		c, err := v.Factory(context.Background(), verb.Streams{In: strings.NewReader(""), Out: &stdout, Err: &stderr})()
		if err != nil {
			t.Fatal(err)
		}
		code = c.Run(append([]string{"-http-addr", srv.URL}, args...))
	}
	return regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d `).ReplaceAllString(stdout.String(), ""), stderr.String(), code
}

const (
	spreadingState = `{"Phase": "spreading", "NewRootID": "aa:bb:cc:dd:ee", "OldRootIDs": ["x"], "Until": "2030-01-01T00:00:00Z", "Required": 8, "Confirmed": 0, "Nodes": [
		{"Node": "n1", "Seen": "2029-12-31T23:00:00Z", "Missing": 5, "Waiting": ["a", "b", "c", "d", "e"]}, {"Node": "n2"}, {"Node": "n3", "Seen": "2029-12-31T23:00:00Z"},
		{"Node": "n4"}, {"Node": "n5"}, {"Node": "n6"}, {"Node": "n7"}, {"Node": "n8"}]}`
	signingState  = `{"Phase": "signing", "NewRootID": "aa:bb:cc:dd:ee", "OldRootIDs": ["x"], "Required": 2, "Confirmed": 1, "Nodes": [{"Node": "n1", "Seen": "2029-12-31T23:00:00Z", "OldLeaves": 2}, {"Node": "n2", "Confirmed": true}]}`
	retiringState = `{"Phase": "retiring", "NewRootID": "aa:bb:cc:dd:ee", "OldRootIDs": ["x", "y"], "Until": "2030-01-01T00:00:00Z", "Required": 2, "Confirmed": 2}`
	noneState     = `{"Phase": "none", "NewRootID": "aa:bb:cc:dd:ee"}`
)

func TestRotateShowsPhases(t *testing.T) {
	t.Setenv("TZ", "UTC")
	a := &rotations{states: []string{spreadingState, spreadingState, "500", signingState, retiringState}}
	out, errs, code := rotateCLI(t, a, "-key-type", "rsa", "-key-bits", "4096", "-watch")
	want := regexp.MustCompile(`^spreading: root aa:bb:cc:dd is being made known; it signs once it is trusted, or at \S+ \S+ \S+
  0 of 8 nodes trust it; waiting for n1: a, b, c and 2 more; n2 \(has not reported\); n3; n4 \(has not reported\); n5 \(has not reported\) and 3 more
signing: root aa:bb:cc:dd signs; certificates of the old root are being replaced
  1 of 2 nodes have replaced theirs; waiting for n1: 2 certificates
retiring: root aa:bb:cc:dd signs; 2 old roots are trusted until \S+ \S+ \S+
$`)
	if code != 0 || !want.MatchString(out) {
		t.Errorf("%d:\n%s", code, out)
	}
	if !strings.Contains(errs, "No cluster leader") {
		t.Errorf("said %q", errs)
	}
	var body map[string]any
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || body["PrivateKeyType"] != "rsa" || body["PrivateKeyBits"] != 4096.0 || body["Force"] != false {
		t.Errorf("asked for %s", a.body)
	}
	if strings.Join(a.asked, ",") != ",1,2,,4" {
		t.Errorf("asked after %q", a.asked)
	}
}

func TestRotateFlags(t *testing.T) {
	tests := []struct {
		args  string
		state string
		body  string // of the PUT, empty for none
		out   string
		code  int
	}{
		{"", spreadingState, `{"Force":false,"PrivateKeyBits":0,"PrivateKeyType":""}`, "spreading: root aa:bb:cc:dd", 0},
		{"-force", retiringState, `{"Force":true,"PrivateKeyBits":0,"PrivateKeyType":""}`, "retiring: root aa:bb:cc:dd", 0},
		{"-watch", noneState, "", "none: root aa:bb:cc:dd is the only one", 0},
		{"-watch -force", retiringState, `{"Force":true,"PrivateKeyBits":0,"PrivateKeyType":""}`, "retiring: root", 0},
		{"-watch", "403", "", "", 1},
		{"-key-type dsa", noneState, "", "", 1},
		{"again", noneState, "", "", 1},
		{"", "500", `{"Force":false,"PrivateKeyBits":0,"PrivateKeyType":""}`, "", 1},
	}
	for _, tt := range tests {
		a := &rotations{states: []string{tt.state}}
		out, _, code := rotateCLI(t, a, strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(out, tt.out) || strings.TrimSpace(a.body) != tt.body {
			t.Errorf("rotate %s: %d %q, body %q", tt.args, code, out, a.body)
		}
	}
}
