package sidecar_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/client/sidecar"
)

// TestMain is also the program that TestExec runs.
func TestMain(m *testing.M) {
	if os.Getenv("SIDECAR_TEST_CHILD") == "" {
		os.Exit(m.Run())
	}
	socket := os.Args[slices.Index(os.Args, "-admin-socket")+1]
	ln, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"node":{"id":"p"}}`) }))
	fmt.Println("token", os.Getenv("CONSUL_HTTP_TOKEN"))
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	select {
	case <-stop:
		fmt.Println("drained")
	case <-time.After(time.Minute):
	}
}

func TestExec(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no signals to drain with")
	}
	t.Setenv("SIDECAR_TEST_CHILD", "1")
	t.Setenv("CONSUL_HTTP_TOKEN", "the operator's")
	dir, err := os.MkdirTemp("", "sc") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "a.sock")
	lines := make(chan string, 10)
	rec := sidecar.Record{ProxyID: "p", Socket: socket, Args: []string{"-admin-socket", socket}, Log: filepath.Join(dir, "a.log")}
	var e sidecar.Exec
	p, err := e.Start(sidecar.Spec{Record: rec, Output: func(l string) { lines <- l }})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	if got := line(t, lines); got != "token " {
		t.Errorf("the child printed %q, want no token of ours in its environment", got)
	}
	// Each has two seconds, which may be too few on a busy machine.
	for until := time.Now().Add(time.Minute); !e.Answers(t.Context(), p.Record()) || !e.Ready(t.Context(), p.Record(), ""); {
		if time.Now().After(until) {
			t.Fatal("the child does not answer on its socket")
		}
	}

	other := p.Record()
	other.Start += "0"
	if _, err := e.Adopt(other, func(string) {}); err == nil {
		t.Error("a process with another start time was adopted")
	}
	again, err := e.Adopt(p.Record(), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Terminate(); err != nil {
		t.Error(err)
	}
	if got := line(t, lines); got != "drained" {
		t.Errorf("the child printed %q, want \"drained\"", got)
	}
	for name, x := range map[string]sidecar.Process{"child": p, "adopted": again} {
		select {
		case <-x.Done():
		case <-time.After(time.Minute):
			t.Errorf("the %s process is not seen to have ended", name)
		}
	}
	if err := again.Kill(); err == nil {
		t.Error("a process that ended was killed again")
	}
}

func line(t *testing.T, lines <-chan string) string {
	t.Helper()
	select {
	case l := <-lines:
		return l
	case <-time.After(time.Minute):
		t.Fatal("no output")
		return ""
	}
}
