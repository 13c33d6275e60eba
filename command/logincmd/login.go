// Package logincmd holds the commands that trade a proof of identity for a token, and give the token back.
package logincmd

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/oidcflow"
	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{
		{
			Path: "login", Synopsis: "Trade a proof of identity for a token", Client: true, Server: true, Tenancy: true, Setup: login,
			Help: "Has the auth method with the name in -method check a proof of identity, and writes the secret of the token that this earns to " +
				"-token-sink-file, which only you can read. The proof is in -bearer-token-file; with -oidc it comes from signing in with a browser, with -aws-auto-bearer-token it is a request to AWS " +
				"that is signed with the credentials of this machine.\n\n" +
				"Other commands use the token with -token-file or CONSUL_HTTP_TOKEN_FILE. Give it back with the logout command.",
		},
		{
			Path: "logout", Synopsis: "Give the token of a login back", Client: true, Server: true, Setup: logout,
			Help: "Deletes the token in use, which must be from a login.",
		},
	}
}

func login(f *flag.FlagSet) func(*verb.Call) error {
	method := f.String("method", "", "`name` of the auth method")
	kind := f.String("type", "", "`type` of the auth method; not needed")
	bearer := f.String("bearer-token-file", "", "`file` with the proof of identity")
	sink := f.String("token-sink-file", "", "`file` to write the secret of the token to")
	meta := verb.Pairs(f, "meta", "`key=value` to note in the description of the token; repeatable")
	oidc := oidcflow.AddFlags(f)
	aws := awsFlags(f)
	return func(c *verb.Call) error {
		switch {
		case len(c.Args) > 0:
			return verb.Errorf("Should have no non-flag arguments.")
		case *method == "":
			return verb.Errorf("Missing required '-method' flag")
		case *sink == "":
			return verb.Errorf("Missing required '-token-sink-file' flag")
		case *kind != "" && *kind != "jwt" && *kind != "kubernetes" && *kind != "aws-iam" && *kind != "oidc":
			return verb.Errorf("Unknown auth method type %q: it is jwt, kubernetes, aws-iam or oidc", *kind)
		case oidc.Enabled && *bearer != "":
			return verb.Errorf("Cannot use '-bearer-token-file' flag with '-oidc'")
		case *aws.on && (*bearer != "" || oidc.Enabled):
			return verb.Errorf("Cannot use '-bearer-token-file' flag or '-oidc' with '-aws-auto-bearer-token'")
		case !*aws.on && aws.given() != "":
			return verb.Errorf("Missing '-aws-auto-bearer-token' flag, which '-%s' is for", aws.given())
		}
		proof := ""
		switch {
		case oidc.Enabled:
			ctx, stop := c.Interruptible()
			defer stop()
			var err error
			if proof, err = oidc.Login(ctx, c.Err); err != nil {
				return verb.Errorf("Error logging in: %w", err)
			}
		case *aws.on:
			var err error
			if proof, err = aws.token(c.Context); err != nil {
				return verb.Errorf("Error signing a request to AWS: %w", err)
			}
		case *bearer == "":
			return verb.Errorf("Missing required '-bearer-token-file' flag")
		default:
			data, err := os.ReadFile(*bearer)
			if err != nil {
				return err
			}
			if proof = strings.TrimSpace(string(data)); proof == "" {
				return verb.Errorf("No bearer token found in %s", *bearer)
			}
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		token, _, err := client.ACL().Login(&api.ACLLoginParams{AuthMethod: *method, BearerToken: proof, Meta: *meta}, c.Write())
		if err != nil {
			return verb.Errorf("Error logging in: %w", err)
		}
		if err := writeSecret(*sink, token.SecretID); err != nil {
			return verb.Errorf("Error writing token to file sink: %w", err)
		}
		return nil
	}
}

// writeSecret puts a secret in a file that only the user can read, in one step: nobody sees half of it.
func writeSecret(path, secret string) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() { // such as a pipe
		return os.WriteFile(path, []byte(secret), 0o600)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".token-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone already when all went well
	if _, err := tmp.WriteString(secret); err != nil {
		tmp.Close()
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("put the file in its place: %w", err)
	}
	return nil
}

func logout(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		if len(c.Args) > 0 {
			return verb.Errorf("Should have no non-flag arguments.")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		if _, err := client.ACL().Logout(c.Write()); err != nil {
			return verb.Errorf("Error destroying token: %w", err)
		}
		return nil
	}
}
