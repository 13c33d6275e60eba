package aclcmd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// agent answers with what was recorded for a method and path, and notes what it is asked.
type agent struct {
	answers map[string]string // by "METHOD /path"
	asked   []string          // with bodies
}

func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	key := r.Method + " " + r.URL.Path
	a.asked = append(a.asked, strings.TrimSpace(key+" "+string(body)))
	answer, ok := a.answers[key]
	switch {
	case !ok:
		http.Error(w, "ACL not found", http.StatusForbidden)
	case answer == "denied":
		w.Header().Set("X-Sarn-Missing-Rule", `acl = "write"`)
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, "Permission denied: token with AccessorID 'a' lacks permission 'acl:write'")
	case answer == "missing":
		http.Error(w, "not found", http.StatusNotFound)
	default:
		io.WriteString(w, answer)
	}
}

// run runs a command against an agent with these answers.
func run(t *testing.T, answers map[string]string, in string, args ...string) (code int, out, errs string, asked []string) {
	t.Helper()
	a := &agent{answers: answers}
	s := httptest.NewServer(a)
	defer s.Close()
	var stdout, stderr bytes.Buffer
	for _, v := range Verbs() {
		words := strings.Fields(v.Path)
		if len(args) < len(words) || strings.Join(args[:len(words)], " ") != v.Path || v.Setup == nil {
			continue
		}
		c, err := v.Factory(t.Context(), verb.Streams{In: strings.NewReader(in), Out: &stdout, Err: &stderr})()
		if err != nil {
			t.Fatal(err)
		}
		code = c.Run(append([]string{"-http-addr=" + s.URL}, args[len(words):]...))
		return code, stdout.String(), stderr.String(), a.asked
	}
	t.Fatalf("no command %v", args)
	return
}

const (
	idA = "11111111-1111-1111-1111-111111111111"
	idB = "11111111-2222-2222-2222-222222222222"
)

// What is wrong is told in the words that scripts know, and with help only where the way to call it was wrong.
func TestMistakes(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"acl bootstrap a b", "This command takes up to one argument"},
		{"acl set-agent-token", "Error! Missing TYPE and TOKEN arguments"},
		{"acl set-agent-token default", "Error! Missing TOKEN argument"},
		{"acl set-agent-token default x y", "Error! Too many arguments: expected 2 got 3"},
		{"acl set-agent-token bogus x", "Unknown token type"},
		{"acl token create", "Cannot create a token without specifying -policy-name,"},
		{"acl token create -service-identity a:", `Malformed -service-identity argument: "a:"`},
		{"acl token create -node-identity a:b:c", `Malformed -node-identity argument: "a:b:c"`},
		{"acl token create -templated-policy builtin/service -var x:y", `unknown variable "x"`},
		{"acl token create -templated-policy-file /no/such", "Failed to read file"},
		{"acl token update -accessor-id " + idA + " -service-identity a -append-service-identity b", "Cannot combine the use of service-identity flags with append- variants"},
		{"acl token update -accessor-id " + idA + " -node-identity a:b -append-node-identity a:b", "Cannot combine the use of node-identity flags with append- variants"},
		{"acl token update -accessor-id " + idA + " -replace-templated-policy a -append-templated-policy b", "Cannot combine the use of templated-policy flags with append- variants"},
		{"acl token clone", "Cannot clone a token without specifying the -accessor-id parameter"},
		{"acl token delete -accessor-id 11111111", "Partial token ID is not unique"},
		{"acl policy read -id 1", "Error determining policy ID: Partial policy ID is not unique"},
		{"acl role read -id 1", "Error determining role ID: No such role ID with prefix: 1"},
		{"acl role update -id x -replace-templated-policy a -append-templated-policy b", "Cannot combine the use of templated-policy flags with append- variants"},
		{"acl auth-method create -name m -type kubernetes", "Missing required '-kubernetes-host' flag"},
		{"acl auth-method create -name m -type kubernetes -kubernetes-host x -config {}", "Cannot use command line arguments with '-config' flags"},
		{"acl auth-method create -name m -type jwt -config {", "Error parsing JSON configuration file: "},
		{"acl auth-method create -name m -type kubernetes -kubernetes-ca-cert -", "Kubernetes CA Cert is empty"},
		{"acl auth-method read", "Must specify the -name parameter"},
		{"acl auth-method read -name none", `Auth method not found with name "none"`},
		{"acl binding-rule create", "Missing required '-method' flag"},
		{"acl binding-rule create -method m", "Missing required '-bind-name' flag"},
		{"acl binding-rule create -method m -bind-name b -bind-vars name=x", "Cannot specify -bind-vars when -bind-type is not templated-policy"},
		{"acl binding-rule read", "Must specify the -id parameter"},
		{"acl binding-rule read -id 1", "no such rule ID with prefix: 1"},
		{"acl binding-rule read -id " + idA, `Binding rule not found with ID "` + idA + `"`},
		{"acl templated-policy preview -name a -file b", "both -name and -file"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			code, out, errs, _ := run(t, map[string]string{
				"GET /v1/acl/tokens":              `[{"AccessorID":"` + idA + `"},{"AccessorID":"` + idB + `"}]`,
				"GET /v1/acl/policies":            `[{"ID":"` + idA + `"},{"ID":"` + idB + `"}]`,
				"GET /v1/acl/roles":               `[]`,
				"GET /v1/acl/binding-rules":       `[]`,
				"GET /v1/acl/binding-rule/" + idA: "missing",
				"GET /v1/acl/auth-method/none":    "missing",
			}, "", strings.Fields(tt.args)...)
			if code != 1 || out != "" || !strings.Contains(errs, tt.want) {
				t.Errorf("exit %d, stdout %q, stderr %q; want %q", code, out, errs, tt.want)
			}
		})
	}
}

// Who is refused is told which rule would help; other failures say nothing of rules.
func TestRefusalsHint(t *testing.T) {
	const hint = "Hint: this line in a policy of the token grants it: acl = \"write\"\n"
	code, _, errs, _ := run(t, map[string]string{"PUT /v1/acl/policy": "denied"}, "", "acl", "policy", "create", "-name=p")
	if code != 1 || !strings.HasPrefix(errs, "Failed to create new policy: Unexpected response code: 403 (Permission denied: ") || !strings.HasSuffix(errs, hint) {
		t.Errorf("refused: exit %d, %q", code, errs)
	}
	if _, _, errs, _ = run(t, nil, "", "acl", "policy", "create", "-name=p"); strings.Contains(errs, "Hint") {
		t.Errorf("unknown token: %q", errs)
	}
}

func TestWholeObjectsAreShown(t *testing.T) {
	answers := map[string]string{
		"GET /v1/acl/auth-method/m":                         `{"Name":"m","Type":"jwt","DisplayName":"M","Description":"d","MaxTokenTTL":"1h0m0s","TokenLocality":"global","Config":{"A":"b"},"CreateIndex":1,"ModifyIndex":2}`,
		"GET /v1/acl/auth-methods":                          `[{"Name":"m","Type":"jwt","DisplayName":"M","Description":"d"}]`,
		"GET /v1/acl/binding-rule/" + idA:                   `{"ID":"` + idA + `","AuthMethod":"m","Description":"d","BindType":"templated-policy","BindName":"builtin/service","BindVars":{"name":"x"},"Selector":"s"}`,
		"GET /v1/acl/binding-rules":                         `[{"ID":"` + idA + `","AuthMethod":"m","BindType":"service","BindName":"n"}]`,
		"GET /v1/acl/templated-policy/name/builtin/service": `{"TemplateName":"builtin/service","Schema":"{}","Template":"T","Description":"d"}`,
		"GET /v1/acl/templated-policy/name/builtin/dns":     `{"TemplateName":"builtin/dns","Schema":"","Template":"T","Description":"d"}`,
	}
	for args, want := range map[string]string{
		"acl auth-method read -name m -meta":          "Name:          m\nType:          jwt\nDisplayName:   M\nDescription:   d\nMaxTokenTTL:   1h0m0s\nTokenLocality: global\nCreate Index:  1\nModify Index:  2\nConfig:\n{\n    \"A\": \"b\"\n}\n",
		"acl auth-method list":                        "m:\n   Type:         jwt\n   DisplayName:  M\n   Description:  d\n",
		"acl binding-rule read -id " + idA:            "ID:           " + idA + "\nAuthMethod:   m\nDescription:  d\nBindType:     templated-policy\nBindName:     builtin/service\nBindVars:     \n     - Name: x\nSelector:     s\n",
		"acl binding-rule list":                       idA + ":\n   AuthMethod:   m\n   Description:  \n   BindType:     service\n   BindName:     n\n   Selector:     \n",
		"acl templated-policy read -name builtin/dns": "Name:            builtin/dns\nDescription:     d\nInput variables: None\nExample usage:\n\tsarn acl token create -templated-policy builtin/dns\n",
		"acl templated-policy read -name builtin/service -meta": "Name:            builtin/service\nDescription:     d\nInput variables:\n\tName: String - Required - The name that the rules are about.\n" +
			"Example usage:\n\tsarn acl token create -templated-policy builtin/service -var name:web\nSchema:\n{}\nRaw Template:\nT\n",
	} {
		code, out, errs, _ := run(t, answers, "", strings.Fields(args)...)
		if diff := cmp.Diff(want, out); code != 0 || diff != "" {
			t.Errorf("%s: exit %d, %s\n(-want +got):\n%s", args, code, errs, diff)
		}
	}
}

// Updates send what was there with what was given, and with -no-merge what was given alone.
func TestUpdates(t *testing.T) {
	method := `{"Name":"m","Type":"kubernetes","DisplayName":"M","Description":"d","MaxTokenTTL":"1h0m0s","Config":{"Host":"h","CACert":"c","ServiceAccountJWT":"j"}}`
	rule := `{"ID":"` + idA + `","AuthMethod":"m","Description":"d","BindType":"templated-policy","BindName":"n","BindVars":{"name":"x"},"Selector":"s"}`
	answers := map[string]string{
		"GET /v1/acl/auth-method/m": method, "PUT /v1/acl/auth-method/m": method,
		"GET /v1/acl/binding-rule/" + idA: rule, "PUT /v1/acl/binding-rule/" + idA: rule,
	}
	for _, tt := range []struct {
		args []string
		want map[string]any // of the last request
	}{
		{[]string{"acl", "auth-method", "update", "-name=m", "-kubernetes-host=new", "-description=e"}, map[string]any{
			"Name": "m", "Type": "kubernetes", "DisplayName": "M", "Description": "e", "MaxTokenTTL": "1h0m0s",
			"Config": map[string]any{"Host": "new", "CACert": "c", "ServiceAccountJWT": "j"},
		}},
		{[]string{"acl", "auth-method", "update", "-name=m", "-no-merge", `-config={"Host":"only"}`}, map[string]any{
			"Name": "m", "Type": "kubernetes", "Config": map[string]any{"Host": "only"},
		}},
		{[]string{"acl", "binding-rule", "update", "-id=" + idA, "-selector=", "-bind-name=o"}, map[string]any{
			"ID": idA, "AuthMethod": "m", "Description": "d", "BindType": "templated-policy", "BindName": "o", "BindVars": map[string]any{"Name": "x"}, "Selector": "",
		}},
		{[]string{"acl", "binding-rule", "update", "-id=" + idA, "-no-merge", "-bind-name=o"}, map[string]any{
			"ID": idA, "AuthMethod": "m", "Description": "", "BindType": "service", "BindName": "o", "Selector": "",
		}},
	} {
		code, _, errs, asked := run(t, answers, "", tt.args...)
		if code != 0 {
			t.Fatalf("%v: %s", tt.args, errs)
		}
		last := asked[len(asked)-1]
		var got map[string]any
		if err := json.Unmarshal([]byte(last[strings.Index(last, "{"):]), &got); err != nil {
			t.Fatal(err)
		}
		for _, index := range []string{"CreateIndex", "ModifyIndex"} {
			delete(got, index)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.args, diff)
		}
	}
}

// Secrets come from standard input, and tokens for agents from there too.
func TestSecretsFromStandardInput(t *testing.T) {
	answers := map[string]string{"PUT /v1/acl/bootstrap": `{"SecretID":"s"}`, "PUT /v1/agent/token/dns": ""}
	_, _, errs, asked := run(t, answers, " "+idA+"\n", "acl", "bootstrap", "-")
	if len(asked) != 1 || !strings.Contains(asked[0], `"`+idA+`"`) {
		t.Errorf("bootstrap: %q %s", asked, errs)
	}
	code, out, errs, asked := run(t, answers, "secret\n", "acl", "set-agent-token", "dns", "-")
	if code != 0 || out != "ACL token \"dns\" set successfully\n" || len(asked) != 1 || !strings.Contains(asked[0], `"secret"`) {
		t.Errorf("set-agent-token: exit %d %q %q %s", code, asked, out, errs)
	}
}

func TestTemplatedPolicyFiles(t *testing.T) {
	named := func(name string) *api.ACLTemplatedPolicyVariables {
		return &api.ACLTemplatedPolicyVariables{Name: name}
	}
	for _, tt := range []struct {
		in   string
		want []*api.ACLTemplatedPolicy
	}{
		{`TemplatedPolicy "builtin/service" { Name = "x" }`, []*api.ACLTemplatedPolicy{{TemplateName: "builtin/service", TemplateVariables: named("x")}}},
		{"TemplatedPolicy \"builtin/service\" {\n Name = \"x\"\n}\nTemplatedPolicy \"builtin/dns\" {\n Datacenters = [\"dc1\"]\n}", []*api.ACLTemplatedPolicy{
			{TemplateName: "builtin/service", TemplateVariables: named("x")}, {TemplateName: "builtin/dns", Datacenters: []string{"dc1"}},
		}},
		{`{"TemplatedPolicy":{"builtin/service":{"Name":"x"}}}`, []*api.ACLTemplatedPolicy{{TemplateName: "builtin/service", TemplateVariables: named("x")}}},
		{``, nil}, {`TemplatedPolicy {`, nil}, {`x = 1`, nil},
	} {
		got, err := parseTemplated(tt.in)
		if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != (tt.want == nil) {
			t.Errorf("%s: %v (-want +got):\n%s", tt.in, err, diff)
		}
	}
}

// Whatever a file holds, every policy read from it names a template.
func FuzzTemplatedPolicyFile(f *testing.F) {
	f.Add(`TemplatedPolicy "builtin/service" { Name = "x" }`)
	f.Add(`{"TemplatedPolicy":{"builtin/service":[{"Name":"x"}]}}`)
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Count(text, "{")+strings.Count(text, "[") > 100 {
			t.Skip("the parser is recursive")
		}
		list, err := parseTemplated(text)
		if err == nil && len(list) == 0 {
			t.Fatal("nothing read, and no error")
		}
		for _, p := range list {
			if p == nil {
				t.Fatal(fmt.Sprint("an empty policy of ", text))
			}
		}
	})
}
