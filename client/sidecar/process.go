package sidecar

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// Exec starts processes of the operating system. Their lives are their own:
// they go on when this process is killed.
type Exec struct {
	Path string // of the program; default this process's own
}

// process is a child, or the child of an agent before this one.
type process struct {
	rec  Record
	proc *os.Process
	done chan struct{}
	err  error // set before done is closed
}

func (p *process) Record() Record        { return p.rec }
func (p *process) Done() <-chan struct{} { return p.done }
func (p *process) Err() error            { return p.err }

// Kill ends the process at once.
func (p *process) Kill() error {
	if !p.same() {
		return os.ErrProcessDone
	}
	return p.proc.Kill()
}

// Terminate tells the process to drain.
func (p *process) Terminate() error {
	if !p.same() {
		return os.ErrProcessDone
	}
	return terminate(p.proc)
}

// same reports whether the process ID still stands for the process of the record.
func (p *process) same() bool {
	select {
	case <-p.done:
		return false
	default:
	}
	start, err := startTime(p.rec.PID)
	return err != nil && p.rec.Start == "" || err == nil && start == p.rec.Start
}

// Start starts the program with its output going to the log file.
func (e Exec) Start(spec Spec) (Process, error) {
	path := e.Path
	if path == "" {
		var err error
		if path, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	log, err := os.OpenFile(spec.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, spec.Args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = environment(os.Environ())
	cmd.SysProcAttr = detached()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{rec: spec.Record, proc: cmd.Process, done: make(chan struct{})}
	p.rec.PID = cmd.Process.Pid
	if p.rec.Start, err = startTime(p.rec.PID); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		_ = cmd.Process.Kill() // it could never be told from another
		_ = cmd.Wait()
		return nil, fmt.Errorf("start time of process: %w", err)
	}
	go func() {
		err := cmd.Wait()
		p.err = cmp.Or(err, errEnded)
		close(p.done)
	}()
	go follow(spec.Log, from, p.done, spec.Output)
	return p, nil
}

var errEnded = errors.New("exit status 0")

// environment leaves out what would give a proxy another agent or token than
// its arguments say.
func environment(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		for _, prefix := range []string{"CONSUL_", "SARN_"} {
			switch strings.TrimPrefix(name, prefix) {
			case "HTTP_TOKEN", "HTTP_TOKEN_FILE", "HTTP_ADDR", "GRPC_ADDR", "HTTP_AUTH":
				return name != strings.TrimPrefix(name, prefix)
			}
		}
		return strings.HasPrefix(name, "CONNECT_PROXY_ID") || strings.HasPrefix(name, "CONNECT_SIDECAR_FOR")
	})
}

// Adopt returns the process of the record if it is still that one.
func (e Exec) Adopt(r Record, output func(string)) (Process, error) {
	start, err := startTime(r.PID)
	if err != nil {
		return nil, err
	}
	if start != r.Start {
		return nil, fmt.Errorf("process %d is another one now", r.PID)
	}
	proc, err := os.FindProcess(r.PID)
	if err != nil {
		return nil, err
	}
	p := &process{rec: r, proc: proc, done: make(chan struct{})}
	go func() {
		// Not our child: it can only be looked at.
		for {
			if now, err := startTime(r.PID); err != nil || now != r.Start {
				p.err = errors.New("process is gone")
				close(p.done)
				return
			}
			time.Sleep(250 * time.Millisecond)
		}
	}()
	from := int64(0)
	if fi, err := os.Stat(r.Log); err == nil {
		from = fi.Size()
	}
	go follow(r.Log, from, p.done, output)
	return p, nil
}

// client returns a client for the admin server behind a socket.
func client(socket string) *http.Client {
	return &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
}

func get(ctx context.Context, socket, path string) ([]byte, int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return nil, 0, err
	}
	resp, err := client(socket).Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return b, resp.StatusCode, err
}

func nodeID(ctx context.Context, socket string) (string, error) {
	b, _, err := get(ctx, socket, "/server_info")
	if err != nil {
		return "", err
	}
	var info struct {
		Node struct {
			ID string `json:"id"`
		} `json:"node"`
	}
	err = json.Unmarshal(b, &info)
	return info.Node.ID, err
}

// Answers reports whether the admin server answers under the proxy's ID.
func (e Exec) Answers(ctx context.Context, r Record) bool {
	id, err := nodeID(ctx, r.Socket)
	return err == nil && id == r.ProxyID
}

// Ready reports whether the process's admin server answers that the proxy is ready.
func (e Exec) Ready(ctx context.Context, r Record, id string) bool {
	path := "/ready"
	if id != "" {
		path = "/proxies/" + url.PathEscape(id) + "/ready"
	}
	_, code, err := get(ctx, r.Socket, path)
	return err == nil && code == http.StatusOK
}

// maxLog is the size at which a log file is cut off.
const maxLog = 1 << 20

// follow passes lines that are added to a file on, until a little after done is
// closed.
func follow(path string, from int64, done <-chan struct{}, output func(string)) {
	var once sync.Once
	var rest []byte
	buf := make([]byte, 32<<10)
	read := func() {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return
		}
		defer f.Close()
		if fi, err := f.Stat(); err == nil && fi.Size() < from {
			from = 0 // cut off by somebody else
		}
		for {
			n, err := f.ReadAt(buf, from)
			from += int64(n)
			rest = append(rest, buf[:n]...)
			for {
				line, after, ok := bytes.Cut(rest, []byte("\n"))
				if !ok {
					break
				}
				output(string(bytes.TrimRight(line, "\r")))
				rest = after
			}
			if len(rest) > bufio.MaxScanTokenSize {
				output(string(rest))
				rest = nil
			}
			if n == 0 || err != nil {
				break
			}
		}
		rest = slices.Clone(rest)
		if from >= maxLog {
			// The writer appends, so it goes on at the new end.
			if f.Truncate(0) == nil {
				from = 0
			}
		}
	}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			read()
			once.Do(func() {
				if len(rest) > 0 {
					output(string(rest))
				}
			})
			return
		case <-tick.C:
			read()
		}
	}
}
