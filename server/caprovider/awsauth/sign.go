// Package awsauth finds the credentials that a machine has at AWS and signs requests with them (Signature Version 4). It is
// what the AWS CA provider and Vault's AWS login need of AWS's own libraries.
package awsauth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Credentials are an access key. They are shared; nobody changes them.
type Credentials struct {
	KeyID, Secret string
	Token         string    // of a session, else empty
	Expires       time.Time // zero means never
}

const algorithm = "AWS4-HMAC-SHA256"

// Sign adds date and authorization to a request for a service in a region. All its headers are signed; none may be added
// afterwards.
func Sign(req *http.Request, body []byte, c *Credentials, service, region string, now time.Time) {
	stamp := now.UTC().Format("20060102T150405Z")
	req.Header.Set("X-Amz-Date", stamp)
	if c.Token != "" {
		req.Header.Set("X-Amz-Security-Token", c.Token)
	}
	canonical, signed := canonicalRequest(req, body)
	scope := strings.Join([]string{stamp[:8], region, service, "aws4_request"}, "/")
	key := []byte("AWS4" + c.Secret)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	signature := mac(key, strings.Join([]string{algorithm, stamp, scope, hash([]byte(canonical))}, "\n"))
	req.Header.Set("Authorization", algorithm+" Credential="+c.KeyID+"/"+scope+", SignedHeaders="+signed+", Signature="+hex.EncodeToString(signature))
}

// canonicalRequest writes a request in the form that is signed, and lists the headers that are part of it.
func canonicalRequest(req *http.Request, body []byte) (text, signed string) {
	host := req.Host
	if host == "" {
		host = req.URL.Host
	}
	headers := map[string]string{"host": host}
	for name, values := range req.Header {
		var trimmed []string
		for _, v := range values {
			trimmed = append(trimmed, strings.Join(strings.Fields(v), " "))
		}
		headers[strings.ToLower(name)] = strings.Join(trimmed, ",")
	}
	delete(headers, "authorization")
	var names []string
	for name := range headers {
		names = append(names, name)
	}
	slices.Sort(names)
	signed = strings.Join(names, ";")
	path := req.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	lines := []string{req.Method, path, canonicalQuery(req.URL.Query())}
	for _, name := range names {
		lines = append(lines, name+":"+headers[name])
	}
	lines = append(lines, "", signed, hash(body))
	return strings.Join(lines, "\n"), signed
}

func canonicalQuery(q url.Values) string {
	return strings.ReplaceAll(q.Encode(), "+", "%20")
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
