package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
)

// answer64 is the body that upstreams give.
var answer64 = strings.Repeat("0123456789abcdef", 4)

// upstreams are what all proxies stand in front of.
type upstreams struct {
	nginx *process
	grpc  *grpc.Server
	tcp   net.Listener
	at    map[string]int
}

// startUpstreams runs nginx for HTTP/1.1, a gRPC server and a source of bytes.
func startUpstreams(dir string, cores int) (*upstreams, error) {
	u := &upstreams{at: map[string]int{"up-h1": freePorts(1)[0]}}
	www, err := filepath.Abs(filepath.Join(dir, "www"))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(www, 0o755); err != nil {
		return nil, err
	}
	for d := www; len(d) > 1 && strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
		os.Chmod(d, 0o755) // its workers are another user
	}
	if err := os.WriteFile(filepath.Join(www, "big"), make([]byte, 1<<20), 0o644); err != nil {
		return nil, err
	}
	conf := filepath.Join(www, "upstream.conf")
	text := fmt.Sprintf(`daemon off; worker_processes %d; pid %s/pid; error_log stderr error; worker_rlimit_nofile 60000;
events { worker_connections 20000; }
http { access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; sendfile on; tcp_nopush on; default_type text/plain; client_body_temp_path %s;
server { listen 127.0.0.1:%d reuseport backlog=4096; location = / { return 200 %q; } location / { root %s; } } }
`, cores, www, www, u.at["up-h1"], answer64, www)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	if u.nginx, err = start(www, "upstream", "nginx", "-p", www, "-c", conf); err != nil {
		return nil, err
	}
	if err := u.nginx.listening(context.Background(), u.at["up-h1"]); err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	u.at["up-grpc"] = ln.Addr().(*net.TCPAddr).Port
	u.grpc = grpc.NewServer(grpc.ForceServerCodecV2(plain{}), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		var b []byte
		if err := s.RecvMsg(&b); err != nil {
			return err
		}
		return s.SendMsg(&b)
	}))
	go u.grpc.Serve(ln)
	if u.tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	u.at["up-tcp"] = u.tcp.Addr().(*net.TCPAddr).Port
	go func() {
		for {
			c, err := u.tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 256<<10)
				if _, err := c.Read(b[:1]); err != nil {
					return
				}
				for {
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			}()
		}
	}()
	return u, nil
}

func (u *upstreams) ports() map[string]int {
	out := map[string]int{}
	for k, v := range u.at {
		out[k] = v
	}
	return out
}

func (u *upstreams) stop() {
	u.nginx.end()
	u.grpc.Stop()
	u.tcp.Close()
}

// plain passes messages as they are.
type plain struct{}

func (plain) Name() string { return "plain" }

func (plain) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (plain) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// wrk loads HTTP/1.1.
func (b *bench) wrk(ctx context.Context, port int, path string, connections int) (result, error) {
	script := filepath.Join(b.dir, "wrk.lua")
	err := os.WriteFile(script, []byte(`done = function(s, l, r)
 io.write(string.format("RESULT %d %d %d %d %d %d\n", s.requests, s.duration, l:percentile(50), l:percentile(99), l:percentile(99.9),
 s.errors.connect + s.errors.read + s.errors.write + s.errors.status + s.errors.timeout)) end
`), 0o600)
	if err != nil {
		return result{}, err
	}
	out, err := exec.CommandContext(ctx, "wrk", "-t2", "-c"+strconv.Itoa(connections), fmt.Sprintf("-d%ds", b.seconds), "-s", script, fmt.Sprintf("http://127.0.0.1:%d%s", port, path)).CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("wrk: %w: %s", err, out)
	}
	var n, us, p50, p99, p3n, failed float64
	_, text, _ := strings.Cut(string(out), "RESULT ")
	if _, err := fmt.Sscan(text, &n, &us, &p50, &p99, &p3n, &failed); err != nil {
		return result{}, fmt.Errorf("wrk: %w: %s", err, out)
	}
	d := func(v float64) time.Duration { return time.Duration(v * 1e3) }
	return result{rate: n / us * 1e6, p50: d(p50), p99: d(p99), p3n: d(p3n), failed: int(failed)}, nil
}

var failures = regexp.MustCompile(`(\d+) succeeded, (\d+) failed, (\d+) errored`)

// h2load loads HTTP/2, or HTTP/1.1 at a given rate.
func (b *bench) h2load(ctx context.Context, port int, args ...string) (result, error) {
	log := filepath.Join(b.dir, "h2load.tsv")
	os.Remove(log)
	args = append(args, "-t2", "-D", strconv.Itoa(b.seconds), "--log-file="+log, fmt.Sprintf("http://127.0.0.1:%d/", port))
	out, err := exec.CommandContext(ctx, "h2load", args...).CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("h2load: %w: %s", err, out)
	}
	f, err := os.Open(log)
	if err != nil {
		return result{}, fmt.Errorf("h2load: %w: %s", err, out)
	}
	defer f.Close()
	var took []time.Duration
	failed := 0
	for s := bufio.NewScanner(f); s.Scan(); { // start in µs since 1970, status, µs
		fields := strings.Fields(s.Text())
		if len(fields) < 3 {
			continue
		}
		us, _ := strconv.ParseInt(fields[2], 10, 64)
		took = append(took, time.Duration(us)*time.Microsecond)
		if fields[1] != "200" {
			failed++
		}
	}
	if m := failures.FindSubmatch(out); m != nil {
		n, _ := strconv.Atoi(string(m[2]))
		failed = max(failed, n)
	}
	if len(took) == 0 {
		return result{}, fmt.Errorf("h2load: no request: %s", out)
	}
	r := quantiles(took)
	r.rate, r.failed = float64(len(took))/float64(b.seconds), failed
	return r, nil
}

// half loads at half of what Envoy reached.
func (b *bench) half(ctx context.Context) (result, error) {
	const clients = 32
	return b.h2load(ctx, b.port("h1"), "--h1", fmt.Sprintf("-c%d", clients), "-m1", fmt.Sprintf("--rps=%.1f", b.halfRate/clients))
}

func quantiles(took []time.Duration) (r result) {
	if len(took) == 0 {
		return r
	}
	slices.Sort(took)
	at := func(q float64) time.Duration { return took[min(len(took)-1, int(q*float64(len(took))))] }
	return result{p50: at(.5), p99: at(.99), p3n: at(.999)}
}

// spread runs a function over and over in several goroutines and tells how often it succeeded.
func spread(ctx context.Context, d time.Duration, workers int, once func(worker int) error) (result, error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []time.Duration
	var failed int
	var last error
	began := time.Now()
	for w := range workers {
		wg.Go(func() {
			var took []time.Duration
			bad := 0
			var err1 error
			for ctx.Err() == nil && time.Since(began) < d && bad < 100 {
				t := time.Now()
				if err := once(w); err != nil {
					err1 = err
					bad++
					continue
				}
				took = append(took, time.Since(t))
			}
			mu.Lock()
			all, failed, last = append(all, took...), failed+bad, errors.Join(last, err1)
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(all) == 0 {
		return result{}, fmt.Errorf("nothing succeeded: %w", last)
	}
	r := quantiles(all)
	r.rate, r.failed = float64(len(all))/time.Since(began).Seconds(), failed
	return r, nil
}

// grpcLoad makes unary calls.
func grpcLoad(ctx context.Context, port int, d time.Duration, conns, streams int) (result, error) {
	var clients []*grpc.ClientConn
	for range conns {
		c, err := grpc.NewClient("127.0.0.1:"+strconv.Itoa(port), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(plain{})))
		if err != nil {
			return result{}, err
		}
		defer c.Close()
		clients = append(clients, c)
	}
	return spread(ctx, d, conns*streams, func(w int) error {
		in, out := []byte(answer64), []byte(nil)
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return clients[w%conns].Invoke(ctx, "/bench.Echo/Say", &in, &out)
	})
}

// tcpLoad reads what the upstream sends.
func tcpLoad(ctx context.Context, port int, d time.Duration, conns int) (result, error) {
	var total atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, conns)
	began := time.Now()
	for range conns {
		wg.Go(func() {
			c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
			if err != nil {
				errs <- err
				return
			}
			defer c.Close()
			c.SetDeadline(began.Add(d))
			c.Write([]byte{1})
			b := make([]byte, 256<<10)
			for ctx.Err() == nil {
				n, err := c.Read(b)
				total.Add(int64(n))
				if err != nil {
					if !errors.Is(err, os.ErrDeadlineExceeded) {
						errs <- err
					}
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return result{}, err
	default:
	}
	return result{rate: float64(total.Load()) / (1 << 20) / time.Since(began).Seconds()}, nil
}

// greet opens a connection and makes a request over it.
func (b *bench) greet() (net.Conn, error) {
	c, err := tls.Dial("tcp", "127.0.0.1:"+strconv.Itoa(b.ports["mtls"]), b.keys.client)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, "GET / HTTP/1.1\r\nhost: web.test\r\n\r\n")
	br := bufio.NewReaderSize(c, 1024)
	length := 0
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			c.Close()
			return nil, err
		}
		if v, ok := strings.CutPrefix(strings.ToLower(line), "content-length: "); ok {
			length, _ = strconv.Atoi(strings.TrimSpace(v))
		}
		if line == "\r\n" {
			break
		}
	}
	if _, err := br.Discard(length); err != nil || length == 0 {
		c.Close()
		return nil, fmt.Errorf("no body: %w", err)
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// handshakes opens connections, each with a request, and closes them.
func (b *bench) handshakes(ctx context.Context, d time.Duration, workers int) (result, error) {
	return spread(ctx, d, workers, func(int) error {
		c, err := b.greet()
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// idleConnections opens connections and measures what they take once nothing happens.
func (b *bench) idleConnections(ctx context.Context) (result, error) {
	before := b.rss()
	var mu sync.Mutex
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	var left atomic.Int64
	left.Store(int64(b.idle))
	began := time.Now()
	var wg sync.WaitGroup
	var failed atomic.Int64
	for range 16 {
		wg.Go(func() {
			for left.Add(-1) >= 0 && ctx.Err() == nil {
				c, err := b.greet()
				if err != nil {
					failed.Add(1)
					continue
				}
				mu.Lock()
				conns = append(conns, c)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(conns) == 0 {
		return result{}, errors.New("no connection")
	}
	rate := float64(len(conns)) / time.Since(began).Seconds()
	select {
	case <-ctx.Done():
	case <-time.After(b.settle): // what the handshakes needed is given back
	}
	after := b.rss()
	return result{rate: rate, loaded: after, each: (after - before) / int64(len(conns)), failed: int(failed.Load()), cpu: -1}, nil
}

// keys are certificates in files.
type keys struct {
	dir    string
	client *tls.Config
}

func (k *keys) file(name string) string { return filepath.Join(k.dir, name) }

func newKeys(dir string) (*keys, error) {
	dir, err := filepath.Abs(filepath.Join(dir, "keys"))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	k := &keys{dir: dir}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(caPEM)
	write := func(name string, b []byte) { err = errors.Join(err, os.WriteFile(k.file(name), b, 0o600)) }
	write("ca.crt", caPEM)
	for i, name := range []string{"server", "client"} {
		key, kerr := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if kerr != nil {
			return nil, kerr
		}
		id := &url.URL{Scheme: "spiffe", Host: "td", Path: "/svc/" + name}
		leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(2 + i)), Subject: pkix.Name{CommonName: name}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, URIs: []*url.URL{id}, DNSNames: []string{"web.test"},
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		der, cerr := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
		if cerr != nil {
			return nil, cerr
		}
		pk, perr := x509.MarshalPKCS8PrivateKey(key)
		if perr != nil {
			return nil, perr
		}
		crt, priv := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})
		write(name+".crt", crt)
		write(name+".key", priv)
		write(name+".pem", append(slices.Clone(crt), priv...))
		if name == "client" {
			k.client = &tls.Config{RootCAs: pool, ServerName: "web.test", Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
		}
	}
	return k, err
}
