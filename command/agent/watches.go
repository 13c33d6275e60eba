package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"sync"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/api/watch"
	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/internal/program"
)

// watches are the handlers that the configuration wants to be run on changes (spec/config.md section 7). They ask this
// agent's own API, over connections in memory, with the agent's default token unless they have one.
type watches struct {
	serve func(ctx context.Context, l net.Listener) error // the API
	base  hclog.Logger                                    // plans name their own part
	log   hclog.Logger

	mu      sync.Mutex
	wanted  map[string]map[string]any // parameters by what tells watches apart
	running map[string]context.CancelFunc
	changed chan struct{} // has a token after a change of wanted
}

func newWatches(serve func(context.Context, net.Listener) error, log hclog.Logger) *watches {
	return &watches{serve: serve, base: log, log: log.Named("watch"), running: map[string]context.CancelFunc{}, changed: make(chan struct{}, 1)}
}

// checkWatches tells what is wrong with watches, if anything.
func checkWatches(list []map[string]any) error {
	for _, params := range list {
		plan, err := parseWatch(params)
		if err == nil {
			_, err = handlerOf(plan)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// set replaces the watches. Those that stay the same go on undisturbed; of those that are no more, no handler starts after
// set has returned. When any is wrong, nothing changes.
func (w *watches) set(list []map[string]any) error {
	if err := checkWatches(list); err != nil {
		return err
	}
	wanted := map[string]map[string]any{}
	for _, params := range list {
		text, err := json.Marshal(params)
		if err != nil {
			return fmt.Errorf("Failed to parse watch (%v): %w", params["type"], err) //nolint:staticcheck // as checkWatch says it
		}
		key := string(text)
		for n := 2; wanted[key] != nil; n++ { // twice the same is two
			key = string(text) + "#" + strconv.Itoa(n)
		}
		wanted[key] = params
		if params["handler"] != nil {
			w.log.Warn("the 'handler' field of watches is deprecated, use 'args' instead", "type", params["type"])
		}
	}
	w.mu.Lock()
	w.wanted = wanted
	for key, stop := range w.running {
		if wanted[key] == nil {
			stop()
			delete(w.running, key)
		}
	}
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
	return nil
}

// parseWatch makes the plan of a watch.
func parseWatch(params map[string]any) (*watch.Plan, error) {
	plan, err := watch.ParseExempt(maps.Clone(params), []string{"args", "handler"})
	if err != nil {
		return nil, fmt.Errorf("Failed to parse watch (%v): %w", params["type"], err) //nolint:staticcheck // as checkWatch says it
	}
	return plan, nil
}

// run keeps the watches going until ctx ends.
func (w *watches) run(ctx context.Context) error {
	l := newInner()
	defer l.Close()
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	serving := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.changed:
		}
		w.mu.Lock()
		if !serving && len(w.wanted) > 0 {
			serving = true
			all.Go(func() {
				if err := w.serve(ctx, l); err != nil && ctx.Err() == nil {
					w.log.Error("watches cannot ask this agent", "error", err)
				}
			})
		}
		for key, params := range w.wanted {
			if w.running[key] != nil {
				continue
			}
			one, stop := context.WithCancel(ctx)
			w.running[key] = stop
			all.Go(func() {
				if err := w.follow(one, params, l); err != nil && one.Err() == nil {
					w.log.Error("watch ended", "type", params["type"], "error", err)
				}
			})
		}
		w.mu.Unlock()
	}
}

// follow runs one watch until ctx ends.
func (w *watches) follow(ctx context.Context, params map[string]any, l *inner) error {
	plan, err := parseWatch(params)
	if err != nil {
		return err
	}
	handle, err := handlerOf(plan)
	if err != nil {
		return err
	}
	client, err := l.client(plan.Token, plan.Datacenter)
	if err != nil {
		return err
	}
	log := w.log.With("type", plan.Type)
	plan.HybridHandler = func(at watch.BlockingParamVal, result any) {
		index := ""
		if n, ok := at.(watch.WaitIndexVal); ok {
			index = strconv.FormatUint(uint64(n), 10)
		}
		var in bytes.Buffer
		if err := json.NewEncoder(&in).Encode(result); err != nil {
			log.Error("result of a watch cannot be told", "error", err)
			return
		}
		output, err := handle(ctx, index, &in)
		switch {
		case err != nil && ctx.Err() == nil:
			log.Error("handler of a watch failed", "error", err, "output", output)
		case err == nil:
			log.Debug("handler of a watch ran", "output", output)
		}
	}
	defer context.AfterFunc(ctx, plan.Stop)()
	return plan.RunWithClientAndHclog(client, w.base)
}

// A watchHandler takes a result, and returns what is to be logged about that.
type watchHandler func(ctx context.Context, index string, result io.Reader) (output string, err error)

// handledOutput is how much of the output of a handler is logged.
const handledOutput = 4 << 10

func handlerOf(plan *watch.Plan) (watchHandler, error) {
	if plan.HandlerType == "http" {
		conf, ok := plan.Exempt["http_handler_config"].(*watch.HttpHandlerConfig)
		if !ok {
			return nil, errors.New("no http_handler_config")
		}
		return sender(conf), nil
	}
	var words []string
	switch args := plan.Exempt["args"].(type) {
	case []any:
		for _, arg := range args {
			words = append(words, fmt.Sprint(arg))
		}
	case []string:
		words = args
	case nil:
		if line, _ := plan.Exempt["handler"].(string); line != "" {
			words = program.Shell(line)
		}
	}
	if len(words) == 0 {
		return nil, errors.New("no handler")
	}
	return runner(words), nil
}

// runner gives results to a program.
func runner(words []string) watchHandler {
	return func(ctx context.Context, index string, result io.Reader) (string, error) {
		out := &lastBytes{most: handledOutput}
		cmd := program.Command(ctx, words...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = result, out, out
		cmd.Env = append(os.Environ(), "CONSUL_INDEX="+index)
		err := cmd.Run()
		if errors.Is(err, exec.ErrWaitDelay) { // it left something running
			err = nil
		}
		return string(out.b), err
	}
}

// lastBytes keeps the end of what is written.
type lastBytes struct {
	most int
	b    []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.b = append(l.b, p[max(0, len(p)-l.most):]...)
	if over := len(l.b) - l.most; over > 0 {
		l.b = append(l.b[:0], l.b[over:]...)
	}
	return len(p), nil
}

// sender sends results to a URL.
func sender(conf *watch.HttpHandlerConfig) watchHandler {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}
	if conf.TLSSkipVerify {
		transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // asked for
	}
	client := &http.Client{Transport: transport, Timeout: conf.Timeout}
	return func(ctx context.Context, index string, result io.Reader) (string, error) {
		req, err := http.NewRequestWithContext(ctx, conf.Method, conf.Path, result)
		if err != nil {
			return "", err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Consul-Index", index)
		for name, values := range conf.Header {
			req.Header[http.CanonicalHeaderKey(name)] = values
		}
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, handledOutput))
		if err == nil && resp.StatusCode/100 != 2 {
			err = fmt.Errorf("the answer is %s", resp.Status)
		}
		return string(body), err
	}
}

// An inner listener carries requests of this process to its own API, without a port.
type inner struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newInner() *inner { return &inner{conns: make(chan net.Conn), closed: make(chan struct{})} }

// Accept implements net.Listener.
func (l *inner) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *inner) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *inner) Addr() net.Addr { return innerAddr{} }

type innerAddr struct{}

func (innerAddr) Network() string { return "inner" }
func (innerAddr) String() string  { return "inner" }

// client returns a client of the API with a token, empty for the agent's default token.
func (l *inner) client(token, datacenter string) (*api.Client, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		here, there := net.Pipe()
		select {
		case l.conns <- there:
			return here, nil
		case <-l.closed:
		case <-ctx.Done():
		}
		here.Close()
		there.Close()
		return nil, net.ErrClosed
	}}
	return api.NewClient(&api.Config{
		Address: "http://inner", Datacenter: datacenter, Token: token, HttpClient: &http.Client{Transport: asItIs{transport, token}},
	})
}

// asItIs sends requests without what variables of the environment have put into them: those are for the command line.
type asItIs struct {
	next  http.RoundTripper
	token string
}

func (t asItIs) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host, r.Host = "http", "inner", "inner"
	r.Header.Del("Authorization")
	r.Header.Del("X-Consul-Token")
	if t.token != "" {
		r.Header.Set("X-Consul-Token", t.token)
	}
	q := r.URL.Query()
	q.Del("ns")
	q.Del("partition")
	r.URL.RawQuery = q.Encode()
	return t.next.RoundTrip(r)
}
