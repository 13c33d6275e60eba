// Package conformance replays recorded API behaviour against a built binary: what users' tools see over HTTP, DNS and
// the command line. The cases are data, README.md describes their form; pending.txt lists those that do not pass yet
// and may only shrink.
package conformance

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/sarnmesh/sarn/internal/testkit"
)

// A caseFile is one recorded case.
type caseFile struct {
	Config       map[string]any   `json:"config"`
	Dev          *bool            `json:"dev"` // nil means true
	StartTimeout float64          `json:"start_timeout"`
	Steps        []map[string]any `json:"steps"`
}

// An agent is one process of the binary under test in a folder of its own.
type agent struct {
	binary string
	file   caseFile
	dir    string
	ports  map[string]int
	vars   map[string]string
	args   []string
	denied bool // anonymous callers see empty lists
	cmd    *exec.Cmd
	exited chan struct{}
	echo   *http.Server
}

var portNames = []string{"http", "dns", "grpc", "grpc_tls", "server", "serf_lan", "serf_wan", "https"}

// startAgent starts an agent for a case and waits until it is ready. A port taken meanwhile costs another try.
func startAgent(binary string, file caseFile) (*agent, error) {
	for try := 1; ; try++ {
		a := &agent{binary: binary, file: file}
		err := a.configure()
		if err == nil {
			err = a.start()
		}
		if err == nil {
			return a, nil
		}
		a.stop()
		if try == 3 || !strings.Contains(err.Error(), "address already in use") {
			return nil, err
		}
	}
}

func (a *agent) configure() (err error) {
	if a.dir, err = os.MkdirTemp("", "conformance-"); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	a.echo = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		fmt.Fprintf(w, `{"line": %q}`, r.Method+" "+r.RequestURI+" "+r.Proto)
	})}
	go a.echo.Serve(l)

	a.ports, a.vars = map[string]int{}, map[string]string{}
	free, err := testkit.FreePorts(len(portNames))
	if err != nil {
		return err
	}
	for i, port := range free {
		a.ports[portNames[i]] = port
		a.vars["port."+portNames[i]] = strconv.Itoa(port)
	}
	a.vars["port.echo"] = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	a.vars["dir"] = a.dir
	a.vars["http"] = "http://127.0.0.1:" + strconv.Itoa(a.ports["http"])

	ports := map[string]any{}
	for name, port := range a.ports {
		if name != "https" {
			ports[name] = port
		}
	}
	overrides := maps.Clone(a.file.Config)
	if more, ok := overrides["ports"].(map[string]any); ok {
		maps.Copy(ports, more)
	}
	delete(overrides, "ports")
	config := map[string]any{
		"node_name": "node1", "datacenter": "dc1", "bind_addr": "127.0.0.1", "log_level": "debug",
		"disable_update_check": true, "ports": ports,
	}
	if len(overrides) > 0 {
		maps.Copy(config, expand(overrides, a.vars).(map[string]any))
	}
	if acl, ok := config["acl"].(map[string]any); ok {
		a.denied = acl["default_policy"] == "deny"
	}
	data, err := json.Marshal(config)
	if err != nil {
		return err
	}
	path := filepath.Join(a.dir, "agent.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	a.args = []string{"agent", "-dev"}
	if a.file.Dev != nil && !*a.file.Dev {
		a.args = []string{"agent", "-data-dir", filepath.Join(a.dir, "data"), "-bootstrap", "-server"}
	}
	a.args = append(a.args, "-config-file", path)
	return nil
}

func (a *agent) start() error {
	log, err := os.OpenFile(filepath.Join(a.dir, "agent.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	a.cmd = exec.Command(a.binary, a.args...)
	a.cmd.Stdout, a.cmd.Stderr = log, log
	if err := a.cmd.Start(); err != nil {
		return err
	}
	a.exited = make(chan struct{})
	go func() { a.cmd.Wait(); close(a.exited) }()
	return a.ready()
}

// deniedWait is how long a caller is taken to wait for the agent's own node who may not see it.
const deniedWait = 5 * time.Second

// ready waits for a leader and for the agent's own node in the catalog.
func (a *agent) ready() error {
	limit := a.file.StartTimeout
	if limit == 0 {
		limit = 30
	}
	var led time.Time
	for end := time.Now().Add(time.Duration(limit * float64(time.Second))); time.Now().Before(end); time.Sleep(30 * time.Millisecond) {
		select {
		case <-a.exited:
			return differ("the agent exited with %d: %s", a.cmd.ProcessState.ExitCode(), a.tail())
		default:
		}
		if led.IsZero() { // asked no more then: where calls are limited, that would leave none for the nodes
			leader, err := a.http("GET", "/v1/status/leader", nil, nil, 5)
			if err != nil || leader.status != 200 || leader.json == nil || leader.json == "" {
				continue
			}
			led = time.Now()
		}
		nodes, err := a.http("GET", "/v1/catalog/nodes", nil, nil, 5)
		if err != nil {
			continue
		}
		if list, ok := nodes.json.([]any); nodes.status == 403 || ok && len(list) > 0 {
			return nil
		}
		if a.denied && time.Since(led) > deniedWait {
			return nil
		}
	}
	return differ("the agent was not ready in %v s: %s", limit, a.tail())
}

func (a *agent) tail() string {
	data, _ := os.ReadFile(filepath.Join(a.dir, "agent.log"))
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], " | ")
}

// end ends the process by a signal, by SIGKILL if that takes more than ten seconds.
func (a *agent) end(sig os.Signal) {
	if a.cmd == nil || a.cmd.Process == nil {
		return
	}
	a.cmd.Process.Signal(sig)
	select {
	case <-a.exited:
	case <-time.After(10 * time.Second):
		a.cmd.Process.Kill()
		<-a.exited
	}
}

func (a *agent) stop() {
	a.end(syscall.SIGTERM)
	if a.echo != nil {
		a.echo.Close()
	}
	os.RemoveAll(a.dir)
}

// An answer is what a step got, of whichever kind.
type answer struct {
	status         int
	headers        http.Header
	text           string
	json           any
	seconds        float64
	stdout, stderr string
	exit           int
	dns            map[string]any
}

func (a *agent) http(method, path string, body []byte, headers map[string]any, timeout float64) (*answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(timeout*float64(time.Second)))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:"+strconv.Itoa(a.ports["http"]), nil)
	if err != nil {
		return nil, err
	}
	// The path is sent as the case has it, unclean or not.
	raw, query, _ := strings.Cut(path, "?")
	req.URL.Opaque, req.URL.RawQuery = "//"+req.URL.Host+raw, query
	if !strings.HasPrefix(raw, "/") {
		return nil, fmt.Errorf("path %q", path)
	}
	if body != nil {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	req.Header.Set("Accept-Encoding", "identity")
	for name, value := range headers {
		if name = http.CanonicalHeaderKey(name); name == "Host" {
			req.Host = text(value)
		} else {
			req.Header.Set(name, text(value))
		}
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	began := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	if resp.ContentLength >= 0 {
		resp.Header.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	return &answer{status: resp.StatusCode, headers: resp.Header, text: string(data), json: parse(data), seconds: time.Since(began).Seconds()}, nil
}

func (a *agent) cli(step map[string]any) (*answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var args []string
	for _, arg := range step["cli"].([]any) {
		args = append(args, text(arg))
	}
	cmd := exec.CommandContext(ctx, a.binary, args...)
	cmd.Dir = a.dir
	cmd.Env = append(os.Environ(), "CONSUL_HTTP_ADDR="+a.vars["http"], "CONSUL_GRPC_ADDR=127.0.0.1:"+strconv.Itoa(a.ports["grpc"]))
	if env, ok := step["env"].(map[string]any); ok {
		for k, v := range env {
			cmd.Env = append(cmd.Env, k+"="+text(v))
		}
	}
	if in, ok := step["stdin"].(string); ok {
		cmd.Stdin = strings.NewReader(in)
	} else {
		cmd.Stdin = strings.NewReader("")
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil {
		return nil, err
	}
	return &answer{exit: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String(), json: parse(stdout.Bytes())}, nil
}

func (a *agent) dns(q map[string]any) (*answer, error) {
	kind := "A"
	if s, ok := q["type"].(string); ok {
		kind = s
	}
	msg := new(dns.Msg)
	msg.SetQuestion(dns.Fqdn(q["name"].(string)), dns.StringToType[kind])
	client := &dns.Client{Timeout: 5 * time.Second, UDPSize: 65535}
	if q["tcp"] == true {
		client.Net = "tcp"
	}
	resp, _, err := client.Exchange(msg, "127.0.0.1:"+strconv.Itoa(a.ports["dns"]))
	if err != nil {
		return nil, err
	}
	records := func(rrs []dns.RR) []any {
		out := []any{}
		for _, rr := range rrs {
			if rec := record(rr); rec != nil {
				out = append(out, rec)
			}
		}
		return out
	}
	return &answer{dns: map[string]any{
		"rcode": dns.RcodeToString[resp.Rcode], "aa": resp.Authoritative, "tc": resp.Truncated, "ra": resp.RecursionAvailable,
		"answer": records(resp.Answer), "authority": records(resp.Ns), "additional": records(resp.Extra),
	}}, nil
}

// record is the form cases describe a resource record in; OPT has none.
func record(rr dns.RR) map[string]any {
	h := rr.Header()
	num := func(n uint32) json.Number { return json.Number(strconv.FormatUint(uint64(n), 10)) }
	out := map[string]any{"name": h.Name, "type": dns.TypeToString[h.Rrtype], "ttl": num(h.Ttl)}
	switch rr := rr.(type) {
	case *dns.OPT:
		return nil
	case *dns.A:
		out["value"] = rr.A.String()
	case *dns.AAAA:
		out["value"] = rr.AAAA.String()
	case *dns.NS:
		out["value"] = rr.Ns
	case *dns.CNAME:
		out["value"] = rr.Target
	case *dns.PTR:
		out["value"] = rr.Ptr
	case *dns.TXT:
		out["value"] = strings.Join(rr.Txt, "")
	case *dns.SRV:
		out["value"], out["port"] = rr.Target, num(uint32(rr.Port))
		out["priority"], out["weight"] = num(uint32(rr.Priority)), num(uint32(rr.Weight))
	case *dns.SOA:
		out["value"], out["mbox"] = rr.Ns, rr.Mbox
		out["serial"], out["refresh"], out["retry"], out["expire"], out["minttl"] = num(rr.Serial), num(rr.Refresh), num(rr.Retry), num(rr.Expire), num(rr.Minttl)
	}
	return out
}

// perform does one step and returns what it got.
func (a *agent) perform(step map[string]any) (*answer, error) {
	if _, ok := step["cli"]; ok {
		return a.cli(step)
	}
	if q, ok := step["dns"].(map[string]any); ok {
		return a.dns(q)
	}
	path := step["path"].(string)
	if query, ok := step["query"].(map[string]any); ok {
		values := url.Values{}
		for k, v := range query {
			if list, ok := v.([]any); ok {
				for _, item := range list {
					values.Add(k, queryText(item))
				}
			} else {
				values.Add(k, queryText(v))
			}
		}
		path += "?" + values.Encode()
	}
	var body []byte
	if s, ok := step["raw"].(string); ok {
		body = []byte(s)
	}
	if s, ok := step["raw_base64"].(string); ok {
		var err error
		if body, err = base64.StdEncoding.DecodeString(s); err != nil {
			return nil, err
		}
	}
	if v, ok := step["body"]; ok {
		body, _ = json.Marshal(v)
	}
	method := "GET"
	if s, ok := step["method"].(string); ok {
		method = s
	}
	headers, _ := step["headers"].(map[string]any)
	return a.http(method, path, body, headers, number(step["timeout"], 40))
}

func queryText(v any) string {
	switch v := v.(type) {
	case bool:
		return map[bool]string{true: "True", false: "False"}[v]
	case nil:
		return "None"
	}
	return text(v)
}

func number(v any, otherwise float64) float64 {
	if n, ok := v.(json.Number); ok {
		f, _ := n.Float64()
		return f
	}
	return otherwise
}

// check holds an answer against what the step expects.
func check(step map[string]any, got *answer, vars map[string]string) error {
	want, ok := step["expect"].(map[string]any)
	if n, isNumber := step["expect"].(json.Number); isNumber {
		want = map[string]any{"status": n}
	} else if _, isHTTP := step["path"]; !ok && isHTTP {
		want = map[string]any{"status": json.Number("200")}
	}
	fields := map[string]any{
		"status": json.Number(strconv.Itoa(got.status)), "text": got.text, "json": got.json, "stdout": got.stdout,
		"stderr": got.stderr, "exit": json.Number(strconv.Itoa(got.exit)),
	}
	maps.Copy(fields, got.dns)
	for _, key := range slices.Sorted(maps.Keys(want)) {
		pattern := want[key]
		switch {
		case key == "headers":
			for name, sub := range pattern.(map[string]any) {
				values, has := got.headers[http.CanonicalHeaderKey(name)]
				switch {
				case sub == "<absent>" && has:
					return differ("header %s: should be absent, got %q", name, values)
				case sub == "<absent>":
				case !has:
					return differ("header %s: missing", name)
				default:
					if err := match(sub, strings.Join(values, ", "), "header "+name, vars); err != nil {
						return err
					}
				}
			}
		case strings.HasSuffix(key, "_contains"):
			field, _ := fields[strings.TrimSuffix(key, "_contains")].(string)
			parts, isList := pattern.([]any)
			if !isList {
				parts = []any{pattern}
			}
			for _, part := range parts {
				if !strings.Contains(field, part.(string)) {
					return differ("%s: want it to contain %q, got %s", strings.TrimSuffix(key, "_contains"), part, describe(field))
				}
			}
		case key == "min_seconds":
			if got.seconds < number(pattern, 0) {
				return differ("took %.2f s, want at least %v", got.seconds, pattern)
			}
		case key == "max_seconds":
			if got.seconds > number(pattern, 0) {
				return differ("took %.2f s, want at most %v", got.seconds, pattern)
			}
		default:
			if err := match(pattern, fields[key], key, vars); err != nil {
				if key == "status" {
					return differ("%v: %s", err, describe(got.text))
				}
				return err
			}
		}
	}
	return nil
}

type result struct {
	got *answer
	err error
}

// run performs the steps of the case and returns the first difference.
func (a *agent) run() error {
	vars := a.vars
	spawned := map[string]chan result{}
	for i, raw := range a.file.Steps {
		step := expand(raw, vars).(map[string]any)
		if err := a.step(step, vars, spawned); err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, label(step), err)
		}
	}
	return nil
}

func label(step map[string]any) string {
	if note, ok := step["note"].(string); ok {
		return note
	}
	method, _ := step["method"].(string)
	path, _ := step["path"].(string)
	if q, ok := step["dns"].(map[string]any); ok {
		path, _ = q["name"].(string)
	}
	if args, ok := step["cli"].([]any); ok {
		path = fmt.Sprint(args...)
	}
	return strings.TrimSpace(method + " " + path)
}

// leastPatience is how long a step is tried again that may be, however short a time its case gives it: a machine can be
// busy.
const leastPatience = 20 * time.Second

func (a *agent) step(step map[string]any, vars map[string]string, spawned map[string]chan result) error {
	if v, ok := step["sleep"]; ok {
		time.Sleep(time.Duration(number(v, 0) * float64(time.Second)))
		return nil
	}
	if how, ok := step["restart"]; ok {
		if how == "kill" {
			a.end(syscall.SIGKILL)
		} else {
			a.end(syscall.SIGTERM)
		}
		return a.start()
	}
	if name, ok := step["write"].(string); ok {
		path := filepath.Join(a.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		return os.WriteFile(path, []byte(step["text"].(string)), 0o600)
	}
	if name, ok := step["spawn"].(string); ok {
		ch := make(chan result, 1)
		spawned[name] = ch
		go func() {
			got, err := a.perform(step)
			ch <- result{got, err}
		}()
		time.Sleep(time.Duration(number(step["lead"], 0.3) * float64(time.Second)))
		return nil
	}
	var got *answer
	patience := time.Duration(number(step["retry"], 0) * float64(time.Second))
	if patience > 0 {
		patience = max(patience, leastPatience)
	}
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		var err error
		if name, ok := step["join"].(string); ok {
			select {
			case r := <-spawned[name]:
				got, err = r.got, r.err
				spawned[name] <- r
			case <-time.After(time.Minute):
				return differ("%s did not end within a minute", name)
			}
		} else {
			got, err = a.perform(step)
		}
		if err == nil {
			err = check(step, got, vars)
		}
		if err == nil {
			break
		}
		if !time.Now().Before(end) {
			return err
		}
	}
	saves, _ := step["save"].(map[string]any)
	for name, path := range saves {
		if header, ok := strings.CutPrefix(path.(string), "header:"); ok {
			vars[name] = got.headers.Get(header)
			continue
		}
		v, err := lookup(got.json, path.(string))
		if err != nil {
			return err
		}
		vars[name] = text(v)
	}
	return nil
}

// load reads a case.
func load(path string) (file caseFile, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return file, err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	err = dec.Decode(&file)
	return file, err
}

// replay runs one case against a binary.
func replay(binary, path string) error {
	file, err := load(path)
	if err != nil {
		return err
	}
	a, err := startAgent(binary, file)
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	defer a.stop()
	return a.run()
}
