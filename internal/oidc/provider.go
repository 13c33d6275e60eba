package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/sarnmesh/sarn/internal/fetch"
)

// maxDocument bounds metadata and key sets, in bytes.
const maxDocument = 1 << 20

// A Provider is what an OpenID Connect provider says of itself (OpenID Connect Discovery 1.0 section 3).
type Provider struct {
	Issuer                string   `json:"issuer"`
	AuthorizationEndpoint string   `json:"authorization_endpoint"`
	TokenEndpoint         string   `json:"token_endpoint"`
	KeysURL               string   `json:"jwks_uri"`
	TokenAuthMethods      []string `json:"token_endpoint_auth_methods_supported"`
	// NamesItself says that its answers to a browser carry its issuer (RFC 9207).
	NamesItself bool `json:"authorization_response_iss_parameter_supported"`
}

// Discover reads the metadata of the provider with this issuer.
func Discover(ctx context.Context, client *http.Client, issuer string) (*Provider, error) {
	base, err := checkURL(issuer)
	if err != nil {
		return nil, err
	}
	if base.RawQuery != "" || base.Fragment != "" {
		return nil, errors.New("the URL has a query or a fragment")
	}
	body, err := get(ctx, client, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return nil, err
	}
	var p Provider
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, errors.New("what it answers is not OpenID Connect metadata")
	}
	if p.Issuer != issuer {
		return nil, fmt.Errorf("it calls itself %.200q, not %q", p.Issuer, issuer)
	}
	for name, text := range map[string]string{
		"authorization_endpoint": p.AuthorizationEndpoint, "token_endpoint": p.TokenEndpoint, "jwks_uri": p.KeysURL,
	} {
		if text == "" && name != "jwks_uri" {
			continue // providers that only sign have none
		}
		u, err := checkURL(text)
		if err == nil && base.Scheme == "https" && u.Scheme != "https" {
			err = errors.New("not https")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return &p, nil
}

// FetchKeys reads the key set at a URL.
func FetchKeys(ctx context.Context, client *http.Client, from string) ([]Key, error) {
	if _, err := checkURL(from); err != nil {
		return nil, err
	}
	body, err := get(ctx, client, from)
	if err != nil {
		return nil, err
	}
	return ParseKeys(body)
}

func checkURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, errors.New("not a URL")
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, errors.New("not an http or https URL")
	case u.Host == "" || u.User != nil:
		return nil, errors.New("not a URL of a host alone")
	}
	return u, nil
}

func get(ctx context.Context, client *http.Client, from string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	a, err := fetch.Do(client, req, maxDocument)
	if err != nil {
		return nil, err
	}
	if a.Status != http.StatusOK {
		return nil, fmt.Errorf("%s answers with status %d", req.URL.Host, a.Status)
	}
	return a.Body, nil
}
