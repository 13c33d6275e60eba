package verb

import (
	"net/http"
	"sync/atomic"
)

// missingRule is the header in which an agent names the line of a policy that would have let a request through.
const missingRule = "X-Sarn-Missing-Rule"

// defaultPolicy is the header in which an agent tells what may be done that no rule speaks of.
const defaultPolicy = "X-Consul-Default-Acl-Policy"

// A hint is what the last refused request lacked.
type hint struct {
	rule   atomic.Pointer[string]
	denies atomic.Bool // the last answer was from an agent that denies by default
}

// listen has the answers to a client's requests looked at.
func (h *hint) listen(client *http.Client) {
	if h == nil || client == nil {
		return
	}
	next := client.Transport
	if next == nil {
		next = http.DefaultTransport
	}
	client.Transport = listener{next, h}
}

// get returns the line, empty for none.
func (h *hint) get() string {
	if rule := h.rule.Load(); rule != nil {
		return *rule
	}
	return ""
}

type listener struct {
	next http.RoundTripper
	hint *hint
}

// RoundTrip performs a request.
func (l listener) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.next.RoundTrip(r)
	if err == nil {
		rule := resp.Header.Get(missingRule)
		l.hint.rule.Store(&rule)
		l.hint.denies.Store(resp.Header.Get(defaultPolicy) == "deny")
	}
	return resp, err
}
