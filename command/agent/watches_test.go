package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// An apiStub answers questions about one key, and shows what was asked.
type apiStub struct {
	mu      sync.Mutex
	index   int
	changed chan struct{}
	tokens  map[string]bool
	paths   map[string]bool
}

func newAPIStub() *apiStub {
	return &apiStub{index: 1, changed: make(chan struct{}), tokens: map[string]bool{}, paths: map[string]bool{}}
}

func (a *apiStub) change() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.index++
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *apiStub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.tokens[r.Header.Get("X-Consul-Token")+r.Header.Get("Authorization")] = true
	a.paths[r.URL.Path+" "+r.URL.Query().Get("ns")] = true
	changed := a.changed
	asked := r.URL.Query().Get("index")
	current := fmt.Sprint(a.index)
	a.mu.Unlock()
	if asked == current {
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	w.Header().Set("X-Consul-Index", fmt.Sprint(a.index))
	w.Header().Set("X-Consul-LastContact", "0")
	w.Header().Set("X-Consul-KnownLeader", "true")
	fmt.Fprintf(w, `[{"Key": "a", "Value": "%s", "ModifyIndex": %d}]`, "b25l", a.index)
}

func (a *apiStub) serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{Handler: a}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	return s.Serve(l)
}

// start runs watches and returns what sets them; the test waits for their end.
func start(t *testing.T, a *apiStub) *watches {
	w := newWatches(a.serve, hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the watches do not end")
		}
	})
	return w
}

// eventually waits until a file has a text.
func eventually(t *testing.T, path, want string) {
	t.Helper()
	var data []byte
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if data, _ = os.ReadFile(path); strings.Contains(string(data), want) {
			return
		}
	}
	t.Fatalf("%s has %q, want %q", path, data, want)
}

func TestWatchesRunProgramsAndFollowTheConfiguration(t *testing.T) {
	// What is for the command line does not count.
	t.Setenv("CONSUL_HTTP_TOKEN", "wrong")
	t.Setenv("CONSUL_HTTP_AUTH", "user:wrong")
	t.Setenv("CONSUL_NAMESPACE", "wrong")
	a, dir := newAPIStub(), t.TempDir()
	w := start(t, a)
	one := map[string]any{"type": "key", "key": "a", "token": "own", "args": []any{"/bin/sh", "-c", "cat >>" + dir + "/one; echo $CONSUL_INDEX >>" + dir + "/one"}}
	two := map[string]any{"type": "keyprefix", "prefix": "a", "handler": "cat >>" + dir + "/two"}
	if err := w.set([]map[string]any{one}); err != nil {
		t.Fatal(err)
	}
	eventually(t, dir+"/one", "}\n1\n")
	a.change()
	eventually(t, dir+"/one", "}\n2\n")
	if err := w.set([]map[string]any{two, one}); err != nil {
		t.Fatal(err)
	}
	eventually(t, dir+"/two", `"Value":"b25l"`)
	if err := w.set([]map[string]any{two}); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(dir + "/one")
	a.change()
	eventually(t, dir+"/two", `"ModifyIndex":3`)
	if after, _ := os.ReadFile(dir + "/one"); string(after) != string(before) {
		t.Errorf("a watch that is no more ran: %q", after[len(before):])
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.tokens) != 2 || !a.tokens["own"] || !a.tokens[""] {
		t.Errorf("tokens %v, want that of the watch and none", a.tokens)
	}
	for path := range a.paths {
		if !strings.HasSuffix(path, " ") {
			t.Errorf("path and namespace %q", path)
		}
	}
}

func TestWatchesSendToURLs(t *testing.T) {
	type request struct{ method, index, header, body string }
	got := make(chan request, 10)
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- request{r.Method, r.Header.Get("X-Consul-Index"), r.Header.Get("X-Mine") + r.Header.Get("Content-Type"), string(body)}
	}))
	defer target.Close()
	a := newAPIStub()
	w := start(t, a)
	if err := w.set([]map[string]any{{"type": "keyprefix", "prefix": "a", "handler_type": "http", "http_handler_config": map[string]any{
		"path": target.URL, "method": "PUT", "timeout": "5s", "header": map[string]any{"X-Mine": []any{"yes"}},
	}}}); err != nil {
		t.Fatal(err)
	}
	r := <-got
	if r.method != "PUT" || r.index != "1" || r.header != "yesapplication/json" || !strings.Contains(r.body, `"Key":"a"`) {
		t.Errorf("got %+v", r)
	}
}

func TestWrongWatchesChangeNothing(t *testing.T) {
	a, file := newAPIStub(), filepath.Join(t.TempDir(), "out")
	w := start(t, a)
	good := map[string]any{"type": "key", "key": "a", "args": []any{"/bin/sh", "-c", "cat >>" + file}}
	if err := w.set([]map[string]any{good}); err != nil {
		t.Fatal(err)
	}
	eventually(t, file, "b25l")
	for _, tt := range []struct {
		watch map[string]any
		want  string
	}{
		{map[string]any{"args": []any{"x"}}, "Watch type must be specified"},
		{map[string]any{"type": "x", "args": []any{"x"}}, "Unsupported watch type: x"},
		{map[string]any{"type": "key", "key": "a", "args": []any{"x"}, "x": 1}, "Invalid parameters: [x]"},
		{map[string]any{"type": "key", "key": "a"}, "no handler"},
		{map[string]any{"type": "key", "key": "a", "handler_type": "http", "http_handler_config": map[string]any{"timeout": "x", "path": "x"}}, "Failed to parse timeout"},
	} {
		if err := w.set([]map[string]any{tt.watch}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %s", tt.watch, err, tt.want)
		}
	}
	a.change()
	eventually(t, file, `"ModifyIndex":2`)
}

func TestTheEndOfOutputIsKept(t *testing.T) {
	l := &lastBytes{most: 4}
	for _, s := range []string{"ab", "cd", "e", "", "fghijklm", "no"} {
		io.WriteString(l, s)
	}
	if string(l.b) != "lmno" {
		t.Errorf("kept %q", l.b)
	}
}
