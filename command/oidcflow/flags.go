package oidcflow

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/internal/fetch"
)

// Flags are the flags of a command that logs in with a browser.
type Flags struct {
	Enabled     bool      // -oidc
	Issuer      string    // -oidc-issuer
	ClientID    string    // -oidc-client-id
	SecretFile  string    // -oidc-client-secret-file; empty for a public client
	Scopes      *[]string // -oidc-scope, repeatable; "openid" is always asked for
	Listen      string    // -oidc-callback-listen-addr; default DefaultListen
	SkipBrowser bool      // -oidc-skip-browser
}

// AddFlags adds the flags. The command calls Login when Enabled was given, and uses what it returns as the bearer token
// of an ordinary login with a method of type jwt whose OIDCDiscoveryURL is the issuer and whose BoundAudiences has the
// client ID:
//
//	oidc := oidcflow.AddFlags(f)
//	…
//	if oidc.Enabled {
//		bearer, err = oidc.Login(ctx, c.Err)
//	}
func AddFlags(f *flag.FlagSet) *Flags {
	o := &Flags{}
	f.BoolVar(&o.Enabled, "oidc", false, "Log in with a browser at an OpenID Connect provider, instead of with -bearer-token-file.")
	f.StringVar(&o.Issuer, "oidc-issuer", "", "URL of the provider, the OIDCDiscoveryURL of the auth method.")
	f.StringVar(&o.ClientID, "oidc-client-id", "", "Client ID that the provider knows this command by.")
	f.StringVar(&o.SecretFile, "oidc-client-secret-file", "", "File with the client's secret, for providers that ask for one.")
	o.Scopes = verb.Strings(f, "oidc-scope", "Scope to ask for besides openid. May be given several times.")
	f.StringVar(&o.Listen, "oidc-callback-listen-addr", DefaultListen, "Address on this machine where the browser returns to.")
	f.BoolVar(&o.SkipBrowser, "oidc-skip-browser", false, "Only print the URL; do not open a browser.")
	return o
}

// Login does the login that the flags say, until it is done or ctx ends. What the user should do is written to out. The
// ID token that it returns is a secret.
func (o *Flags) Login(ctx context.Context, out io.Writer) (string, error) {
	if o.Issuer == "" {
		return "", errors.New("Missing required '-oidc-issuer' flag") //nolint:staticcheck // shown as it is
	}
	if o.ClientID == "" {
		return "", errors.New("Missing required '-oidc-client-id' flag") //nolint:staticcheck // shown as it is
	}
	secret := ""
	if o.SecretFile != "" {
		b, err := os.ReadFile(o.SecretFile)
		if err != nil {
			return "", err
		}
		secret = strings.TrimSpace(string(b))
	}
	if err := loopback(o.Listen); err != nil {
		return "", err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return "", err
	}
	host, _, _ := net.SplitHostPort(o.Listen)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	conf := Config{
		Issuer: o.Issuer, ClientID: o.ClientID, ClientSecret: secret, Scopes: *o.Scopes,
		Listener: l, Callback: net.JoinHostPort(host, port), Out: out,
		Client: &http.Client{Transport: transport, CheckRedirect: fetch.Redirect, Timeout: fetch.Timeout},
	}
	if !o.SkipBrowser {
		conf.Open = openBrowser
	}
	return Login(ctx, conf)
}

// loopback refuses addresses that others reach: the browser brings the code in plain text.
func loopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("-oidc-callback-listen-addr %q is not a loopback address", address)
}

// openBrowser asks the desktop to open a URL, which is one of http or https.
func openBrowser(url string) error {
	var cmd *exec.Cmd
	switch runtime.GOOS {
	case "windows":
		cmd = exec.Command("rundll32", "url.dll,FileProtocolHandler", url) //nolint:gosec // no shell reads it
	case "darwin":
		cmd = exec.Command("open", url) //nolint:gosec // no shell reads it
	default:
		cmd = exec.Command("xdg-open", url) //nolint:gosec // no shell reads it
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}
