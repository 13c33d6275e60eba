package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/internal/fetch"
)

const (
	callTimeout = 30 * time.Second
	signTimeout = 10 * time.Second // of a leaf: many wait for theirs when Vault is away
	maxReply    = 1 << 20
	maxMessage  = 512 // of an error that Vault gives
)

// A client speaks to one Vault in one identity. It logs in when it is first used, and keeps its token alive until it is
// closed.
type client struct {
	s        *settings
	http     *http.Client
	metadata *http.Client // of clouds
	getenv   func(string) string
	log      hclog.Logger
	running  sync.WaitGroup // what keeps sessions alive

	mu      sync.Mutex // guards what follows
	session *session   // nil before the first use
	closed  bool
}

// A session is a token and what keeps it alive.
type session struct {
	ready chan struct{} // closed when token or err is set
	token string
	err   error
	stop  context.CancelFunc
}

func newClient(k *Kind, s *settings) (*client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.serverName, InsecureSkipVerify: s.skipVerify}
	if s.caFile != "" || s.caPath != "" {
		pool, err := loadRoots(s.caFile, s.caPath)
		if err != nil {
			return nil, err
		}
		config.RootCAs = pool
	}
	if s.certFile != "" {
		pair, err := tls.LoadX509KeyPair(s.certFile, s.keyKey)
		if err != nil {
			return nil, errors.New("client certificate for Vault: CertFile and KeyFile are no pair that can be read")
		}
		config.Certificates = []tls.Certificate{pair}
	}
	c := &client{s: s, getenv: k.Getenv, log: k.Log}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext: k.Dial, TLSClientConfig: config, ForceAttemptHTTP2: true, Proxy: http.ProxyFromEnvironment,
			MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		},
		// A standby of Vault sends its callers to the active one.
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > 2 || via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
				return errors.New("Vault redirects too often, or away from TLS")
			}
			return nil
		},
	}
	c.metadata = &http.Client{Transport: &http.Transport{DialContext: k.Dial, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	return c, nil
}

func loadRoots(file, folder string) (*x509.CertPool, error) {
	pool, files := x509.NewCertPool(), []string{}
	if file != "" {
		files = append(files, file)
	} else {
		entries, err := os.ReadDir(folder)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if !e.IsDir() {
				files = append(files, filepath.Join(folder, e.Name()))
			}
		}
	}
	found := false
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		found = pool.AppendCertsFromPEM(text) || found
	}
	if !found {
		return nil, errors.New("there is no certificate in CAFile or CAPath")
	}
	return pool, nil
}

// A request is one call of Vault's HTTP API.
type request struct {
	method, namespace, path string
	body                    any
	token                   string
}

// A statusError is an answer that is no success.
type statusError struct {
	status  int
	message string
}

func (e *statusError) Error() string {
	if e.message == "" {
		return fmt.Sprintf("Vault answers with status %d", e.status)
	}
	return fmt.Sprintf("Vault answers with status %d: %s", e.status, e.message)
}

// hasStatus tells whether an error is an answer of a status.
func hasStatus(err error, status int) bool {
	e, ok := errors.AsType[*statusError](err)
	return ok && e.status == status
}

// says tells whether an error is an answer with a text in it.
func says(err error, text string) bool {
	e, ok := errors.AsType[*statusError](err)
	return ok && strings.Contains(e.message, text)
}

// do makes a request and decodes the answer, JSON or, for a *string, as it is.
func (c *client) do(ctx context.Context, r request, reply any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body []byte
	if r.body != nil {
		var err error
		if body, err = json.Marshal(r.body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, r.method, strings.TrimSuffix(c.s.address.String(), "/")+"/v1/"+r.path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Request", "true")
	if r.token != "" {
		req.Header.Set("X-Vault-Token", r.token)
	}
	if r.namespace != "" {
		req.Header.Set("X-Vault-Namespace", r.namespace)
	}
	answer, err := fetch.Do(c.http, req, maxReply)
	if err != nil {
		return c.withoutSecrets(err.Error(), r.token)
	}
	if answer.Status >= 400 {
		var problem struct{ Errors []string }
		_ = json.Unmarshal(answer.Body, &problem) // it says less then
		message := strings.Join(problem.Errors, "; ")
		if len(message) > maxMessage {
			message = message[:maxMessage]
		}
		return &statusError{answer.Status, c.withoutSecrets(message, r.token).Error()}
	}
	switch v := reply.(type) {
	case nil:
		return nil
	case *string:
		*v = string(answer.Body)
		return nil
	}
	if len(answer.Body) == 0 {
		return nil
	}
	if err := json.Unmarshal(answer.Body, reply); err != nil {
		return errors.New("the answer of Vault cannot be read")
	}
	return nil
}

// withoutSecrets makes an error of a text that somebody else wrote: whatever it repeats of secrets is cut out.
func (c *client) withoutSecrets(text string, token string) error {
	secrets := []string{token, c.s.token}
	if c.s.auth != nil {
		for _, key := range []string{"secret_id", "password", "token", "jwt", "role_id"} {
			if v, ok := c.s.auth.param.Value(key).(string); ok {
				secrets = append(secrets, v)
			}
		}
	}
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "***")
		}
	}
	return errors.New(text)
}

// call makes a request with the client's token. One that Vault does not accept any more is replaced once by logging in.
func (c *client) call(ctx context.Context, method string, m mount, path string, body, reply any) error {
	for again := false; ; again = true {
		s, err := c.open(ctx)
		if err != nil {
			return err
		}
		err = c.do(ctx, request{method, m.namespace, path, body, s.token}, reply)
		if again || c.s.auth == nil || !hasStatus(err, http.StatusForbidden) {
			return err
		}
		c.drop(s)
	}
}

var errClosed = errors.New("the connection to Vault is closed")

// open returns the session, which it begins if there is none.
func (c *client) open(ctx context.Context) (*session, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, errClosed
	}
	s := c.session
	if s == nil {
		life, stop := context.WithCancel(context.Background())
		s = &session{ready: make(chan struct{}), stop: stop}
		c.session = s
		c.running.Go(func() { c.keep(life, s) })
	}
	c.mu.Unlock()
	select {
	case <-s.ready:
		if s.err != nil {
			c.drop(s)
		}
		return s, s.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// drop ends a session, so that the next call begins another.
func (c *client) drop(s *session) {
	c.mu.Lock()
	if c.session == s {
		c.session = nil
	}
	c.mu.Unlock()
	s.stop()
}

// close ends the session and waits for what keeps it.
func (c *client) close() {
	c.mu.Lock()
	s := c.session
	c.session, c.closed = nil, true
	c.mu.Unlock()
	if s != nil {
		s.stop()
	}
	c.running.Wait()
	c.http.CloseIdleConnections()
}

const (
	// minRenewal is how long after a renewal the next one comes, at least.
	minRenewal = time.Second
	// maxRenewal bounds the same for tokens that live long.
	maxRenewal = 24 * time.Hour
)

// keep logs in, and renews the token of a session at half of its life until ctx ends. When it can live no longer, and it
// was got by logging in, the session is dropped, and the next call logs in again.
func (c *client) keep(ctx context.Context, s *session) {
	info := &tokenInfo{token: c.s.token}
	var err error
	if c.s.auth != nil {
		info, err = c.login(ctx)
	}
	if err != nil {
		s.err = err
		close(s.ready)
		return
	}
	s.token = info.token
	close(s.ready)
	if c.s.auth == nil {
		var known struct {
			Data struct {
				TTL       int  `json:"ttl"`
				Renewable bool `json:"renewable"`
			} `json:"data"`
		}
		if err := c.do(ctx, request{method: http.MethodGet, namespace: c.s.namespace, path: "auth/token/lookup-self", token: s.token}, &known); err != nil {
			if ctx.Err() == nil {
				c.log.Warn("the Vault token cannot be looked up, and is not renewed", "error", err)
			}
			return
		}
		info.renewable, info.ttl = known.Data.Renewable, time.Duration(known.Data.TTL)*time.Second
	}
	if info.ttl == 0 { // it lives without end
		return
	}
	end := time.Now().Add(info.ttl)
	for left := info.ttl; left >= 2*minRenewal; left = time.Until(end) {
		timer := time.NewTimer(min(max(left/2, minRenewal), maxRenewal))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if !info.renewable {
			continue
		}
		next, err := c.renew(ctx, s.token)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			c.log.Warn("renewing the Vault token failed, will retry", "expires", end, "error", err)
		case next.ttl > 0:
			info, end = next, time.Now().Add(next.ttl)
		}
	}
	if c.s.auth == nil {
		c.log.Error("the Vault token expires and cannot be renewed; configure another one", "expires", end)
		return
	}
	c.drop(s)
}

func (c *client) renew(ctx context.Context, token string) (*tokenInfo, error) {
	var reply struct {
		Auth struct {
			Renewable bool `json:"renewable"`
			Lease     int  `json:"lease_duration"`
		} `json:"auth"`
	}
	err := c.do(ctx, request{method: http.MethodPost, namespace: c.s.namespace, path: "auth/token/renew-self", body: map[string]any{}, token: token}, &reply)
	return &tokenInfo{token, reply.Auth.Renewable, time.Duration(reply.Auth.Lease) * time.Second}, err
}
