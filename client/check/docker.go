package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog"
)

// maxDockerAnswer bounds the JSON answers of the Docker API.
const maxDockerAnswer = 1 << 20

// A dockerProbe runs a program in a container, through the API of the Docker daemon.
type dockerProbe struct {
	dial      func(ctx context.Context) (net.Conn, error) // nil when there is no daemon to talk to
	container string
	args      []string
	timeout   time.Duration // 0 means the default
	limit     int
}

// Probe runs the program once. One whose time is up goes on: the engine has no way to end it.
func (p dockerProbe) Probe(ctx context.Context) Result {
	if p.dial == nil {
		return critical("docker checks are not available")
	}
	timeout := p.timeout
	if timeout <= 0 {
		timeout = dockerTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errTimedOut)
	defer cancel()
	out := newTail(p.limit)
	r, err := p.run(ctx, out)
	switch {
	case err == nil:
		return r
	case context.Cause(ctx) == errTimedOut:
		return Result{Status: catalog.Critical, Output: fmt.Sprintf("Timed out (%s) running check\n\n%s", timeout, out.report()), Final: true}
	}
	return critical("%v", err)
}

func (p dockerProbe) run(ctx context.Context, out *tail) (Result, error) {
	client := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: maxHeader,
			DialContext:            func(context.Context, string, string) (net.Conn, error) { return p.dial(ctx) },
		},
	}
	var created struct{ ID string }
	err := p.call(ctx, client, http.MethodPost, "/containers/"+url.PathEscape(p.container)+"/exec",
		map[string]any{"AttachStdout": true, "AttachStderr": true, "Cmd": p.args}, &created)
	if err != nil {
		return Result{}, err
	}
	if err := p.start(ctx, client, created.ID, out); err != nil {
		return Result{}, err
	}
	var ended struct {
		Running  bool
		ExitCode *int // nil while it runs
	}
	if err := p.call(ctx, client, http.MethodGet, "/exec/"+url.PathEscape(created.ID)+"/json", nil, &ended); err != nil {
		return Result{}, err
	}
	if ended.Running || ended.ExitCode == nil {
		return Result{}, errors.New("docker: the engine stopped sending output before the program had ended")
	}
	r := Result{Status: catalog.Critical, Output: out.report()}
	switch *ended.ExitCode {
	case 0:
		r.Status = catalog.Passing
	case 1:
		r.Status = catalog.Warning
	}
	return r, nil
}

func (p dockerProbe) do(ctx context.Context, client *http.Client, method, path string, body any) (*http.Response, error) {
	var data []byte
	if body != nil {
		data, _ = json.Marshal(body) // strings and booleans only
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	if resp.StatusCode > 299 {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return nil, fmt.Errorf("docker: %s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(text)))
	}
	return resp, nil
}

func (p dockerProbe) call(ctx context.Context, client *http.Client, method, path string, body, into any) error {
	resp, err := p.do(ctx, client, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxDockerAnswer)).Decode(into); err != nil {
		return fmt.Errorf("docker: read the answer to %s: %w", path, err)
	}
	return nil
}

// start runs the program and copies its output, which comes in frames: a stream number, three zero bytes, a length.
func (p dockerProbe) start(ctx context.Context, client *http.Client, id string, out io.Writer) error {
	resp, err := p.do(ctx, client, http.MethodPost, "/exec/"+url.PathEscape(id)+"/start", map[string]any{"Detach": false, "Tty": false})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for {
		var header [8]byte
		switch _, err := io.ReadFull(resp.Body, header[:]); {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("docker: read output: %w", err)
		}
		if _, err := io.CopyN(out, resp.Body, int64(binary.BigEndian.Uint32(header[4:]))); err != nil {
			return fmt.Errorf("docker: read output: %w", err)
		}
	}
}
