package awsiam

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// maxBearer bounds a bearer token, in bytes.
const maxBearer = 64 << 10

// Headers of the request to STS that have a meaning here. They are part of what the client signs.
const (
	serverIDHeader     = "X-Consul-IAM-ServerID"
	entityMethodHeader = "X-Consul-IAM-GetEntity-Method"
	entityURLHeader    = "X-Consul-IAM-GetEntity-URL"
	entityHeaderHeader = "X-Consul-IAM-GetEntity-Headers"
	entityBodyHeader   = "X-Consul-IAM-GetEntity-Body"
)

// A request is one that a client signed for AWS. It is only ever sent to AWS, and only if it asks who the client is.
type request struct {
	url    *url.URL
	header map[string]string // by canonical name
	signed map[string]bool   // canonical names of the headers that the signature covers
	body   string
	form   url.Values
}

// A service is one of AWS that requests are sent to.
type service struct {
	name     string
	host     *regexp.Regexp
	version  string
	endpoint *url.URL            // instead of the host of the request; nil for that
	actions  map[string][]string // to parameters
}

// A region has no digit but the last part, so that no bucket or load balancer is taken for one: "sts.s3.amazonaws.com"
// belongs to whoever made the bucket "sts".
const region = `[a-z]{2,}(-[a-z]+){1,3}-[0-9]`

var (
	stsHost = regexp.MustCompile(`^sts(-fips)?(\.` + region + `)?\.amazonaws\.com(\.cn)?$`)
	iamHost = regexp.MustCompile(`^iam(-fips)?(\.us-gov|\.` + region + `)?\.amazonaws\.com(\.cn)?$`)
)

// amzHeaders are the X-Amz- headers that a request may have.
var amzHeaders = []string{
	"X-Amz-Algorithm", "X-Amz-Content-Sha256", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Security-Token",
	"X-Amz-Signature", "X-Amz-Signedheaders", "X-Amz-User-Agent",
}

const formType = "application/x-www-form-urlencoded"

// connectionHeaders change what a server takes for the request.
var connectionHeaders = []string{
	"Connection", "Content-Encoding", "Expect", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade", "X-Http-Method-Override",
}

// parseBearer reads a bearer token: the request that tells who the client is, and, nil if there is none, the one that
// tells more about that.
func (v *Validator) parseBearer(raw string) (caller, entity *request, err error) {
	if len(raw) > maxBearer {
		return nil, nil, fmt.Errorf("invalid bearer token: longer than %d bytes", maxBearer)
	}
	var b struct {
		Method  string `json:"iam_http_request_method"`
		URL     []byte `json:"iam_request_url"`
		Headers []byte `json:"iam_request_headers"`
		Body    []byte `json:"iam_request_body"`
	}
	if err := json.Unmarshal([]byte(raw), &b); err != nil {
		var bad base64.CorruptInputError
		if errors.As(err, &bad) {
			return nil, nil, errors.New("invalid bearer token: not base64")
		}
		return nil, nil, errors.New("invalid bearer token: not the JSON expected")
	}
	if b.Method != http.MethodPost {
		return nil, nil, errors.New("invalid bearer token: iam_http_request_method must be POST")
	}
	caller, err = v.sts.parse(string(b.URL), b.Headers, string(b.Body), v.conf.AllowedSTSHeaderValues)
	if err != nil {
		return nil, nil, fmt.Errorf("invalid bearer token: %w", err)
	}
	if want := v.conf.ServerIDHeaderValue; want != "" {
		if got, signed := caller.get(serverIDHeader); got != want || !signed {
			return nil, nil, fmt.Errorf("invalid bearer token: the header %s is missing, not signed, or not that of this server", serverIDHeader)
		}
	}
	if !v.conf.EnableIAMEntityDetails {
		return caller, nil, nil
	}
	parts := map[string]string{}
	for _, name := range []string{entityMethodHeader, entityURLHeader, entityHeaderHeader, entityBodyHeader} {
		value, signed := caller.get(name)
		if value == "" || !signed {
			return nil, nil, fmt.Errorf("invalid bearer token: the header %s is missing or not signed", name)
		}
		parts[name] = value
	}
	if parts[entityMethodHeader] != http.MethodPost {
		return nil, nil, fmt.Errorf("invalid bearer token: the header %s must be POST", entityMethodHeader)
	}
	entity, err = v.iam.parse(parts[entityURLHeader], []byte(parts[entityHeaderHeader]), parts[entityBodyHeader], v.conf.AllowedSTSHeaderValues)
	if err != nil {
		return nil, nil, fmt.Errorf("invalid bearer token: request for the entity: %w", err)
	}
	return caller, entity, nil
}

// parse checks that a request is one for this service, and nothing but that.
func (s *service) parse(address string, headers []byte, body string, allowed []string) (*request, error) {
	r := &request{body: body}
	var err error
	if r.url, err = s.parseURL(address); err != nil {
		return nil, err
	}
	if r.header, err = parseHeaders(headers); err != nil {
		return nil, err
	}
	if r.signed, err = signedHeaders(r.header["Authorization"]); err != nil {
		return nil, err
	}
	if host, ok := r.header["Host"]; ok && host != r.url.Host {
		return nil, errors.New("the header Host is not the host of the URL")
	}
	if kind, _, _ := strings.Cut(r.header["Content-Type"], ";"); !strings.EqualFold(strings.TrimSpace(kind), formType) {
		return nil, errors.New("the header Content-Type is not that of a form")
	}
	for name := range r.header {
		if slices.Contains(connectionHeaders, name) {
			return nil, fmt.Errorf("the header %s is not allowed", name)
		}
		if strings.HasPrefix(name, "X-Amz-") && !slices.Contains(amzHeaders, name) &&
			!slices.ContainsFunc(allowed, func(a string) bool { return textproto.CanonicalMIMEHeaderKey(a) == name }) {
			return nil, fmt.Errorf("the header %s is not allowed", name)
		}
	}
	if r.form, err = url.ParseQuery(body); err != nil {
		return nil, errors.New("the body is not a form")
	}
	for name, values := range r.form {
		if len(values) != 1 {
			return nil, fmt.Errorf("the body has %q more than once", name)
		}
	}
	action := r.form.Get("Action")
	parameters, ok := s.actions[action]
	if !ok {
		return nil, fmt.Errorf("the action %q is not allowed", action)
	}
	if r.form.Get("Version") != s.version {
		return nil, fmt.Errorf("the version of %s is not %s", s.name, s.version)
	}
	for name := range r.form {
		if name != "Action" && name != "Version" && !slices.Contains(parameters, name) {
			return nil, fmt.Errorf("the parameter %q is not allowed", name)
		}
	}
	return r, nil
}

func (s *service) parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("the URL is not valid")
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" || u.Path != "/" && u.Path != "" {
		return nil, errors.New("the URL has more than a host")
	}
	if s.endpoint != nil && u.Scheme == s.endpoint.Scheme && u.Host == s.endpoint.Host {
		return u, nil
	}
	if u.Scheme != "https" || !s.host.MatchString(u.Host) {
		return nil, fmt.Errorf("the URL is not one of %s", s.name)
	}
	return u, nil
}

// parseHeaders reads headers as Go writes them in JSON, or with plain texts as values. Each may be there once.
func parseHeaders(text []byte) (map[string]string, error) {
	var raw map[string]any
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, errors.New("the headers are not a JSON object")
	}
	out := map[string]string{}
	for name, value := range raw {
		name = textproto.CanonicalMIMEHeaderKey(name)
		if list, ok := value.([]any); ok && len(list) == 1 {
			value = list[0]
		}
		s, ok := value.(string)
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(s) {
			return nil, errors.New("a header is not valid")
		}
		if _, twice := out[name]; !ok || twice {
			return nil, fmt.Errorf("the header %q does not have one value", name)
		}
		out[name] = s
	}
	return out, nil
}

var authorization = regexp.MustCompile(`^AWS4-[A-Z0-9-]+ +Credential=[^\s,]+, *SignedHeaders=([a-z0-9;_-]+), *Signature=[0-9a-f]+$`)

// signedHeaders returns the canonical names of the headers that an Authorization covers.
func signedHeaders(text string) (map[string]bool, error) {
	m := authorization.FindStringSubmatch(text)
	if m == nil {
		return nil, errors.New("the header Authorization is not a signature of AWS")
	}
	out := map[string]bool{}
	for name := range strings.SplitSeq(m[1], ";") {
		out[textproto.CanonicalMIMEHeaderKey(name)] = true
	}
	if !out["Host"] {
		return nil, errors.New("the header Host is not signed")
	}
	return out, nil
}

func (r *request) get(name string) (value string, signed bool) {
	name = textproto.CanonicalMIMEHeaderKey(name)
	return r.header[name], r.signed[name]
}
