package vault_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/server/caprovider"
	"github.com/sarnmesh/sarn/server/caprovider/vault"
	"github.com/sarnmesh/sarn/server/caprovider/vaulttest"
)

const clusterID = "11111111-2222-3333-4444-555555555555"

func wanted(t *testing.T, config map[string]any) caprovider.Wanted {
	t.Helper()
	s, err := ca.ParseSettings(ca.Vault, config)
	if err != nil {
		t.Fatal(err)
	}
	return caprovider.Wanted{Config: config, Settings: s, ClusterID: clusterID}
}

func config(address string, more map[string]any) map[string]any {
	c := map[string]any{"Address": address, "RootPKIPath": "root", "IntermediatePKIPath": "inter"}
	for k, v := range more {
		c[k] = v
	}
	return c
}

// Every method sends what Vault's documentation asks for.
func TestAuthMethods(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var gotPath string
	var got map[string]any
	server := vaulttest.New("token")
	server.Login = func(path string, body map[string]any) string {
		gotPath, got = path, body
		return "token"
	}
	s := httptest.NewServer(server)
	defer s.Close()
	clouds := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/metadata/identity/oauth2/token" && r.Header.Get("Metadata") == "true":
			fmt.Fprint(w, `{"access_token":"azure-token"}`)
		case r.URL.Path == "/metadata/instance" && r.Header.Get("Metadata") == "true":
			fmt.Fprint(w, `{"compute":{"name":"vm1","resourceGroupName":"rg","subscriptionId":"sub"}}`)
		case r.URL.Path == "/computeMetadata/v1/instance/service-accounts/default/identity" && r.Header.Get("Metadata-Flavor") == "Google" && r.URL.Query().Get("audience") == "http://vault/mesh":
			fmt.Fprint(w, "google-token")
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer clouds.Close()
	kind := vault.Kind{
		Getenv: func(name string) string {
			return map[string]string{"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "aws-secret"}[name]
		},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == "169.254.169.254:80" || address == "metadata.google.internal:80" {
				address = clouds.Listener.Addr().String()
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	tests := []struct {
		kind, mount string
		params      map[string]any
		path        string
		body        string // JSON
		err         string
	}{
		{"approle", "", map[string]any{"role_id": "r", "secret_id_file_path": file("secret", "s")}, "approle/login", `{"role_id":"r","secret_id":"s"}`, ""},
		{"approle", "", map[string]any{"role_id_file_path": file("role", "r")}, "approle/login", `{"role_id":"r"}`, ""},
		{"approle", "", nil, "", "", "there is no role_id"},
		{"kubernetes", "k8s/prod", map[string]any{"role": "mesh", "token_path": file("jwt", "j")}, "k8s/prod/login", `{"jwt":"j","role":"mesh"}`, ""},
		{"kubernetes", "", map[string]any{"jwt": "j"}, "", "", "there is no role"},
		{"jwt", "", map[string]any{"role": "mesh", "path": file("jwt", "j")}, "jwt/login", `{"jwt":"j","role":"mesh"}`, ""},
		{"jwt", "", map[string]any{"role": "mesh", "path": filepath.Join(dir, "none")}, "", "", "no such file"},
		{"jwt", "", map[string]any{"path": file("large", strings.Repeat("x", 70<<10))}, "", "", "is larger than"},
		{"userpass", "", map[string]any{"username": "u", "password": "p"}, "userpass/login/u", `{"password":"p"}`, ""},
		{"ldap", "people", map[string]any{"username": "a/../b", "password": "p"}, "people/login/a/../b", `{"password":"p"}`, ""},
		{"userpass", "", map[string]any{"username": "u"}, "", "", "there must be username and password"},
		{"github", "", map[string]any{"token": "t"}, "github/login", `{"token":"t"}`, ""},
		{"gcp", "", map[string]any{"type": "gce", "role": "mesh"}, "gcp/login", `{"jwt":"google-token","role":"mesh"}`, ""},
		{"gcp", "", map[string]any{"type": "iam", "role": "mesh"}, "", "", `type "iam" is not supported`},
		{"azure", "", map[string]any{"role": "mesh"}, "azure/login", `{"jwt":"azure-token","resource_group_name":"rg","role":"mesh","subscription_id":"sub","vm_name":"vm1","vmss_name":""}`, ""},
		{"aws", "", map[string]any{"type": "ec2"}, "", "", `type "ec2" is not supported`},
	}
	for _, tt := range tests {
		method := map[string]any{"Type": tt.kind, "MountPath": tt.mount, "Params": tt.params}
		gotPath, got = "", nil
		_, err := kind.Establish(t.Context(), wanted(t, config(s.URL, map[string]any{"AuthMethod": method})))
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: got %v, want %q", tt.kind, err, tt.err)
			}
			continue
		}
		body, _ := json.Marshal(got)
		if err != nil || gotPath != tt.path || string(body) != tt.body {
			t.Errorf("%s: %v; sent %s to %s, want %s to %s", tt.kind, err, body, gotPath, tt.body, tt.path)
		}
	}

	method := map[string]any{"Type": "aws", "Params": map[string]any{"type": "iam", "role": "mesh", "region": "eu-west-1", "header_value": "vault.example.com"}}
	if _, err := kind.Establish(t.Context(), wanted(t, config(s.URL, map[string]any{"AuthMethod": method}))); err != nil {
		t.Fatal(err)
	}
	decoded := func(key string) string {
		text, err := base64.StdEncoding.DecodeString(fmt.Sprint(got[key]))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if decoded("iam_request_url") != "https://sts.eu-west-1.amazonaws.com/" || decoded("iam_request_body") != "Action=GetCallerIdentity&Version=2011-06-15" || got["role"] != "mesh" {
		t.Errorf("aws: sent %v", got)
	}
	var headers http.Header
	if err := json.Unmarshal([]byte(decoded("iam_request_headers")), &headers); err != nil {
		t.Fatal(err)
	}
	authorization := headers.Get("Authorization")
	if headers.Get("X-Vault-AWS-IAM-Server-ID") != "vault.example.com" || !strings.Contains(authorization, "x-vault-aws-iam-server-id") || strings.Contains(fmt.Sprint(headers), "aws-secret") {
		t.Errorf("aws: headers %v", headers)
	}
}

func TestTLS(t *testing.T) {
	server := vaulttest.New("token")
	s := httptest.NewTLSServer(server)
	defer s.Close()
	dir := t.TempDir()
	caFile := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("secret text of a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		more map[string]any
		err  string
	}{
		{"unknown authority", nil, "certificate signed by unknown authority"},
		{"CAFile", map[string]any{"CAFile": caFile}, ""},
		{"CAPath", map[string]any{"CAPath": dir}, ""},
		{"another name", map[string]any{"CAFile": caFile, "TLSServerName": "other.invalid"}, "certificate is valid for"},
		{"its name", map[string]any{"CAFile": caFile, "TLSServerName": "example.com"}, ""},
		{"not verified", map[string]any{"TLSSkipVerify": true}, ""},
		{"no certificate in the file", map[string]any{"CAFile": empty}, "there is no certificate"},
		{"a certificate without key", map[string]any{"CertFile": caFile}, "must be given together"},
		{"no pair", map[string]any{"CertFile": caFile, "KeyFile": empty}, "no pair that can be read"},
	} {
		c := config(s.URL, tt.more)
		c["Token"] = "token"
		_, err := vault.Kind{}.Establish(t.Context(), wanted(t, c))
		if (err == nil) != (tt.err == "") || err != nil && (!strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "secret text")) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.err)
		}
	}
	if got := server.Mounts(); len(got) != 2 {
		t.Errorf("mounted %v", got)
	}
}

func TestHostileVault(t *testing.T) {
	tests := []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}, "longer than"},
		{"not JSON", func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				fmt.Fprint(w, "<html>")
			}
		}, "cannot be read"},
		{"not PEM", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>") }, "no PEM-encoded data found"},
		{"an error as long as a book", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(500)
			fmt.Fprintf(w, `{"errors":[%q]}`, strings.Repeat("x", 1<<16))
		}, "status 500: xxx"},
		{"an error with the token", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(400)
			fmt.Fprintf(w, `{"errors":["I was given %s"]}`, r.Header.Get("X-Vault-Token"))
		}, "status 400: I was given ***"},
		{"round and round", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, "redirects too often"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(tt.handler)
			defer s.Close()
			c := config(s.URL, map[string]any{"Token": "the-secret-token"})
			_, err := vault.Kind{}.Establish(t.Context(), wanted(t, c))
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "the-secret-token") || len(err.Error()) > 1000 {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// A standby sends its callers to the active server, with the same method, body and token.
func TestStandby(t *testing.T) {
	active := httptest.NewServer(vaulttest.New("token"))
	defer active.Close()
	standby := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, active.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer standby.Close()
	if _, err := (vault.Kind{}).Establish(t.Context(), wanted(t, config(standby.URL, map[string]any{"Token": "token"}))); err != nil {
		t.Error(err)
	}
}
