package explain

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/sarnmesh/sarn/catalog/entry"
)

// matchText tells in words which requests a route is for.
func matchText(r *entry.ServiceRoute) string {
	if r == nil || r.Match == nil || r.Match.HTTP == nil {
		return "every request"
	}
	h := r.Match.HTTP
	parts := pathText(h.PathExact, h.PathPrefix, h.PathRegex)
	if len(parts) > 0 && h.CaseInsensitive {
		parts[0] += " in any case"
	}
	for _, x := range h.Header {
		parts = append(parts, headerText(x.Name, x.Present, x.Exact, x.Prefix, x.Suffix, "", x.Regex, x.Invert, false))
	}
	for _, q := range h.QueryParam {
		switch {
		case q.Exact != "":
			parts = append(parts, fmt.Sprintf("query %s is %q", q.Name, q.Exact))
		case q.Regex != "":
			parts = append(parts, fmt.Sprintf("query %s matches %q", q.Name, q.Regex))
		default:
			parts = append(parts, fmt.Sprintf("query %s is there", q.Name))
		}
	}
	return allText(parts, h.Methods)
}

// permissionText tells in words which requests a permission is for.
func permissionText(p *entry.IntentionPermission) string {
	var parts, methods []string
	if h := p.HTTP; h != nil {
		parts = pathText(h.PathExact, h.PathPrefix, h.PathRegex)
		for _, x := range h.Header {
			parts = append(parts, headerText(x.Name, x.Present, x.Exact, x.Prefix, x.Suffix, x.Contains, x.Regex, x.Invert, x.IgnoreCase))
		}
		methods = h.Methods
	}
	if p.JWT != nil {
		var names []string
		for _, j := range p.JWT.Providers {
			names = append(names, j.Name)
		}
		if len(names) > 0 {
			parts = append(parts, "a token of "+strings.Join(names, " or "))
		}
	}
	return allText(parts, methods)
}

func allText(parts, methods []string) string {
	if len(methods) > 0 {
		parts = append(parts, "method "+strings.Join(methods, " or "))
	}
	if len(parts) == 0 {
		return "every request"
	}
	return strings.Join(parts, ", ")
}

func pathText(exact, prefix, regex string) []string {
	switch {
	case exact != "":
		return []string{fmt.Sprintf("path is %q", exact)}
	case prefix != "":
		return []string{fmt.Sprintf("path begins with %q", prefix)}
	case regex != "":
		return []string{fmt.Sprintf("path matches %q", regex)}
	}
	return nil
}

func headerText(name string, present bool, exact, prefix, suffix, contains, regex string, invert, fold bool) string {
	text := fmt.Sprintf("header %s is there", name)
	for _, c := range []struct{ verb, value string }{
		{"is", exact}, {"begins with", prefix}, {"ends with", suffix}, {"contains", contains}, {"matches", regex},
	} {
		if c.value != "" {
			text = fmt.Sprintf("header %s %s %q", name, c.verb, c.value)
			break
		}
	}
	if fold {
		text += " in any case"
	}
	if invert {
		text = "not (" + text + ")"
	}
	return text
}

// A printer writes the steps of an explanation.
type printer struct {
	w    io.Writer
	step int
}

func (p *printer) begin(format string, args ...any) {
	p.step++
	fmt.Fprintf(p.w, "%2d. %s\n", p.step, fmt.Sprintf(format, args...))
}

func (p *printer) detail(format string, args ...any) {
	fmt.Fprintf(p.w, "    %s\n", fmt.Sprintf(format, args...))
}

// Text writes an explanation for people, step by step.
func Text(w io.Writer, x *Explanation) {
	p, r := &printer{w: w}, &x.Request
	fmt.Fprintf(w, "%s: %s\n\n", strings.ToUpper(x.Verdict), x.Reason)
	p.begin("%s calls %s: %s %s", r.From, r.To, r.Method, r.Path)
	p.detail("sidecar of %s: %s; upstream %s, protocol %s", r.From, x.Source.text(), x.Upstream, x.Protocol)
	if t := x.Token; t != nil {
		p.token(t)
	}
	switch {
	case x.Reply != nil:
		p.begin("the sidecar of %s answers by itself: %d (%s)", r.From, x.Reply.Status, x.Reply.Details)
		if x.Reply.Location != "" {
			p.detail("to %s", x.Reply.Location)
		}
	case x.Route != nil:
		p.route(x)
	}
	if t := x.Timeouts; t != nil && x.Reply == nil {
		line := "timeouts: request " + t.Request + ", idle " + t.Idle + ", connect " + t.Connect
		if t.PerTry != "" {
			line += ", per try " + t.PerTry
		}
		p.detail("%s", line)
	}
	if t := x.Retries; t != nil {
		p.detail("up to %d retries, on %s", t.Attempts, strings.Join(t.On, ", "))
	}
	if len(x.Branches) > 1 {
		p.begin("the requests are split %d ways", len(x.Branches))
	}
	for _, b := range x.Branches {
		p.branch(x, b)
	}
	for _, n := range x.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	for _, n := range x.Problems {
		fmt.Fprintf(w, "problem: %s\n", n)
	}
}

func (s *Side) text() string {
	switch {
	case s.Assumed:
		return "none is registered, one is assumed"
	case s.Proxy == "":
		return "not known"
	}
	return s.Proxy + " on " + s.Node
}

func (p *printer) token(t *TokenFacts) {
	provider := t.Provider
	if provider == "" {
		provider = "no known provider"
	}
	line := "token of " + provider
	if t.Place != "" {
		line += " in " + t.Place
	}
	if t.Note != "" {
		line += ": " + t.Note
	}
	p.detail("%s", line)
}

func (p *printer) route(x *Explanation) {
	if x.Route.CatchAll {
		p.begin("no route of the service-router %s matches: the service itself", x.Route.Router)
	} else {
		p.begin("route %d of the service-router %s matches: %s", x.Route.Index+1, x.Route.Router, x.Route.Match)
	}
	d := x.Route.Destination
	if d != nil && (d.Service != "" || d.ServiceSubset != "") {
		p.detail("to %s", serviceText(cmp.Or(d.Service, x.Route.Router), d.ServiceSubset))
	}
	if d != nil && d.PrefixRewrite != "" {
		p.detail("the path becomes %s", x.Path)
	}
}

func serviceText(service, subset string) string {
	if subset == "" {
		return service
	}
	return service + " (subset " + subset + ")"
}

func (t *Target) text() string {
	line := serviceText(t.Service, t.Subset)
	switch {
	case t.Peer != "":
		line += " of peer " + t.Peer
	case t.Datacenter != "":
		line += " in " + t.Datacenter
	}
	return line
}

func (p *printer) branch(x *Explanation, b *Branch) {
	head := ""
	if b.Split != "" {
		head = fmt.Sprintf("%.2f %% by the service-splitter %s: ", b.Weight, b.Split)
	}
	p.begin("%s%s", head, b.Target.text())
	if len(b.Trail) > 1 {
		p.detail("by redirects and default subsets: %s", strings.Join(b.Trail, " -> "))
	}
	for _, e := range b.Edits {
		p.detail("%s", e)
	}
	if b.LoadBalancer != "" {
		p.detail("load balancer: %s", b.LoadBalancer)
	}
	p.endpoints(&b.Target)
	p.authorization(b.Authorization)
	if b.Timeout != "" {
		p.detail("the application has %s to answer", map[bool]string{true: "any time", false: b.Timeout}[b.Timeout == "none"])
	}
	for i, f := range b.Failover {
		p.begin("failover %d: %s", i+1, f.text())
		p.endpoints(f)
		p.authorization(f.Authorization)
	}
}

func (p *printer) endpoints(t *Target) {
	if t.Filter != "" {
		p.detail("subset %s: %s", t.Subset, t.Filter)
	}
	if t.Gateway != "" {
		p.detail("through mesh gateways (%s)", t.Gateway)
	}
	if t.Hidden {
		p.detail("the token may not see all instances of %s", t.Service)
	}
	p.detail("%d instances, %d healthy", len(t.Endpoints), t.Healthy)
	for _, e := range t.Endpoints {
		where := ""
		if e.Service != "" {
			where = " " + e.Service + " on " + e.Node
		}
		p.detail("  %s %s%s", e.Address, e.Health, where)
	}
}

func (p *printer) authorization(a *Authorization) {
	if a == nil {
		return
	}
	p.begin("the proxy of %s (%s) decides: %s", a.By.Service, a.By.text(), a.Verdict)
	p.detail("%s", a.Reason)
	if n := a.Intention; n != nil && n.Description != "" {
		p.detail("description: %s", n.Description)
	}
	if a.Verdict == Denied {
		line := "its access log shows "
		if a.Layer == 7 {
			line += fmt.Sprintf("rule=%s response_code_details=%s", a.Rule, a.Details)
		} else {
			line += "connection_termination_details=" + a.Details
		}
		p.detail("%s", line)
	}
}
