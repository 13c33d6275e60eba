package awsiam

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/internal/fetch"
)

// FuzzARN checks that what is an ARN is the text it was made of, and that a canonical one stays what it is.
func FuzzARN(f *testing.F) {
	for _, s := range []string{
		"arn:aws:iam::123456789012:role/a/b/c", "arn:aws:sts::123456789012:assumed-role/r/s", "arn:aws-us-gov:iam::123456789012:user/x",
		"arn:aws:iam::123456789012:role//x", "arn:aws:iam::123456789012:role/é/x", "arn:aws:iam::123456789012:root", ":::::",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseARN(text)
		if err != nil {
			if b, err := parseBound(text, false); err == nil {
				t.Fatalf("bound %v", b)
			}
			return
		}
		if a.String() != text {
			t.Fatalf("%q became %q", text, a)
		}
		c := a.canonical()
		if again, err := parseARN(c.String()); err != nil || again != c || c.canonical() != c || c.kind == "assumed-role" {
			t.Fatalf("canonical %v: %v, %v", c, again, err)
		}
		if b, err := parseBound(text, true); err != nil || !b.matches(a) {
			t.Fatalf("%q does not match itself: %v", text, err)
		}
	})
}

// FuzzBearer checks that no bearer token leads anywhere but to AWS, or asks anything but who the client is.
func FuzzBearer(f *testing.F) {
	const auth = `"Authorization":"AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/sts/aws4_request, SignedHeaders=host;x-amz-date, Signature=00"`
	f.Add("https://sts.amazonaws.com/", `{"Host":["sts.amazonaws.com"],"Content-Type":["application/x-www-form-urlencoded"],`+auth+`}`, "Action=GetCallerIdentity&Version=2011-06-15")
	f.Add("https://sts.amazonaws.com@127.0.0.1/", `{`+auth+`}`, "Action=GetCallerIdentity&Action=AssumeRole")
	f.Add("https://sts.s3.amazonaws.com", `{"host":"x","Host":"y"}`, "")
	v, err := New(Config{BoundIAMPrincipalARNs: []string{"arn:aws:iam::123456789012:role/web"}}, fetch.Way{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, at, headers, body string) {
		enc := base64.StdEncoding.EncodeToString
		raw, _ := json.Marshal(map[string]string{
			"iam_http_request_method": "POST", "iam_request_url": enc([]byte(at)), "iam_request_headers": enc([]byte(headers)), "iam_request_body": enc([]byte(body)),
		})
		r, entity, err := v.parseBearer(string(raw))
		if err != nil {
			return
		}
		if entity != nil || r.url.Scheme != "https" || r.url.Port() != "" || r.url.RawQuery != "" || strings.Trim(r.url.Path, "/") != "" {
			t.Fatalf("%v", r.url)
		}
		if h := r.url.Host; !strings.HasPrefix(h, "sts.") && !strings.HasPrefix(h, "sts-fips.") || !strings.HasSuffix(h, ".amazonaws.com") && !strings.HasSuffix(h, ".amazonaws.com.cn") || strings.Contains(h, "s3") {
			t.Fatalf("host %q", h)
		}
		if len(r.form) != 2 || r.form.Get("Action") != "GetCallerIdentity" || !r.signed["Host"] {
			t.Fatalf("%v %v", r.form, r.signed)
		}
	})
}
