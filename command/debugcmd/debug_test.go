package debugcmd_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/command/debugcmd"
	"github.com/sarnmesh/sarn/command/verb"
)

// An agent answers what the command asks; profiles only when it may.
func agent(t *testing.T, profiles bool) *httptest.Server {
	mux := http.NewServeMux()
	text := func(path, body string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) })
	}
	text("/v1/agent/self", `{"Config": {"NodeName": "n1"}}`)
	text("/v1/agent/host", `{"CPU": []}`)
	text("/v1/agent/members", `[{"Name": "n1"}]`)
	text("/v1/operator/raft/configuration", `{"Servers": []}`)
	stream := func(path, line string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, line+"\n")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
	}
	stream("/v1/agent/metrics/stream", `{"Gauges": []}`)
	stream("/v1/agent/monitor", "a line of the log")
	if profiles {
		for _, kind := range []string{"cmdline", "heap", "goroutine"} {
			mux.HandleFunc("/debug/pprof/"+kind, func(w http.ResponseWriter, r *http.Request) {
				if kind != "cmdline" && r.URL.Query().Has("seconds") { // which asks for a difference
					w.WriteHeader(http.StatusBadRequest)
					return
				}
				io.WriteString(w, kind)
			})
		}
		for _, kind := range []string{"profile", "trace"} {
			mux.HandleFunc("/debug/pprof/"+kind, func(w http.ResponseWriter, r *http.Request) {
				select {
				case <-time.After(200 * time.Millisecond):
					io.WriteString(w, r.FormValue("seconds"))
				case <-r.Context().Done():
				}
			})
		}
	}
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func run(t *testing.T, s *httptest.Server, args ...string) (out, errs string, code int) {
	var o, e bytes.Buffer
	cmd, err := debugcmd.Verbs()[0].Factory(t.Context(), verb.Streams{In: strings.NewReader(""), Out: &o, Err: &e})()
	if err != nil {
		t.Fatal(err)
	}
	code = cmd.Run(append([]string{"-http-addr=" + s.URL}, args...))
	return o.String(), e.String(), code
}

// contents returns the files of an archive; the names of times are told as TIME.
func contents(t *testing.T, path string) map[string]string {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		parts := strings.Split(h.Name, "/")
		if len(parts) > 1 && strings.HasPrefix(parts[1], "20") {
			parts[1] = "TIME"
		}
		if h.Typeflag == tar.TypeReg {
			files[strings.Join(parts, "/")] = string(data)
			if h.Mode != 0o600 {
				t.Errorf("%s has mode %o", h.Name, h.Mode)
			}
		}
	}
}

func TestEverythingIsCollected(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the least time of the command, ten seconds")
	}
	t.Parallel()
	dir := t.TempDir() + "/out"
	_, errs, code := run(t, agent(t, true), "-duration=10s", "-interval=10s", "-output="+dir)
	if code != 0 || errs != "" {
		t.Fatalf("exit %d: %s", code, errs)
	}
	files := contents(t, dir+".tar.gz")
	for name, want := range map[string]string{
		"out/agent.json": `"NodeName": "n1"`, "out/host.json": "CPU", "out/members.json": "n1", "out/listpeers.json": "Servers",
		"out/index.json": `"Duration": "10s"`, "out/metrics.json": "Gauges", "out/consul.log": "a line of the log", "out/profile.prof": "10",
		"out/trace.out": "10", "out/TIME/heap.prof": "heap", "out/TIME/goroutine.prof": "goroutine",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s has %q, want %q in it", name, files[name], want)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder is left beside the archive")
	}
}

func TestWithoutProfilesTheRestIsCollected(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the least time of the command, ten seconds")
	}
	t.Parallel()
	dir := t.TempDir() + "/out"
	_, errs, code := run(t, agent(t, false), "-duration=10s", "-interval=10s", "-output="+dir)
	if code != 0 || !strings.Contains(errs, "Not collected: pprof, which needs enable_debug") {
		t.Fatalf("exit %d: %s", code, errs)
	}
	files := contents(t, dir+".tar.gz")
	if files["out/consul.log"] == "" || files["out/profile.prof"] != "" {
		t.Errorf("files %v", files)
	}
}

func TestRefusals(t *testing.T) {
	s := agent(t, false)
	taken := t.TempDir()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"x"}, "Too many arguments provided, expected 0"},
		{[]string{"-duration=9s"}, "duration must be longer than 10s"},
		{[]string{"-interval=4s"}, "interval must be longer than 10s"},
		{[]string{"-duration=10s", "-interval=20s"}, "duration (10s) must be longer than interval (20s)"},
		{[]string{"-capture=x"}, "target not found: x"},
		{[]string{"-output=" + taken}, "output directory already exists: " + taken},
	} {
		if _, errs, code := run(t, s, tt.args...); code != 1 || !strings.Contains(errs, tt.want) {
			t.Errorf("%v: exit %d, %q; want %q", tt.args, code, errs, tt.want)
		}
	}
	if entries, _ := os.ReadDir("."); slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "consul-debug") }) {
		t.Error("a refused command left a folder")
	}
}

// Lines of the journal are asked of the system's own program for it.
func TestJournalIsCollected(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("has no journal")
	}
	bin := t.TempDir()
	if err := os.WriteFile(bin+"/journalctl", []byte("#!/bin/sh\necho \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	dir := t.TempDir() + "/out"
	out, errs, code := run(t, agent(t, false), "-capture=agent", "-since=1h", "-output="+dir)
	if code != 0 || errs != "" {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
	got := contents(t, dir+".tar.gz")["out/journal.log"]
	_, text, _ := strings.Cut(got, "--since=@")
	text, _, _ = strings.Cut(text, " ")
	at, err := strconv.ParseInt(text, 10, 64)
	if ago := time.Since(time.Unix(at, 0)); err != nil || ago < time.Hour-time.Second || ago > time.Hour+time.Minute {
		t.Errorf("journalctl was asked %q", got)
	}
	t.Setenv("PATH", t.TempDir())
	dir = t.TempDir() + "/out"
	if _, errs, code := run(t, agent(t, false), "-capture=agent", "-since=1h", "-output="+dir); code != 0 || !strings.Contains(errs, "Not collected: journal.log") {
		t.Errorf("without a journal: exit %d: %s", code, errs)
	}
}
