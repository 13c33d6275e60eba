package explain

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Diff tells what differs between two explanations of one request, a fact a line; nil when nothing does.
func Diff(before, after *Explanation) []string {
	a, b := facts(before), facts(after)
	var out []string
	seen := map[string]bool{}
	for _, f := range slices.Concat(a.names, b.names) {
		if seen[f] {
			continue
		}
		seen[f] = true
		if x, y := a.values[f], b.values[f]; x != y {
			out = append(out, fmt.Sprintf("%s: %s -> %s", f, none(x), none(y)))
		}
	}
	return out
}

func none(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// A factList is facts by name, in their order.
type factList struct {
	names  []string
	values map[string]string
}

func (l *factList) add(name, format string, args ...any) {
	if v := fmt.Sprintf(format, args...); v != "" && l.values[name] == "" {
		l.names = append(l.names, name)
		l.values[name] = v
	}
}

func facts(x *Explanation) *factList {
	l := &factList{values: map[string]string{}}
	l.add("verdict", "%s", x.Verdict)
	l.add("reason", "%s", x.Reason)
	l.add("protocol", "%s", x.Protocol)
	if r := x.Route; r != nil {
		l.add("route", "%d of %s (%s)", r.Index+1, r.Router, r.Match)
		l.add("route destination", "%s", text(r.Destination))
	}
	if r := x.Reply; r != nil {
		l.add("reply of the source's sidecar", "%d %s", r.Status, r.Details)
	}
	l.add("path", "%s", x.Path)
	l.add("host", "%s", x.Host)
	if t := x.Timeouts; t != nil {
		l.add("timeouts", "%s", text(t))
	}
	if r := x.Retries; r != nil {
		l.add("retries", "%s", text(r))
	}
	for _, b := range x.Branches {
		name := b.Target.text()
		l.add(name+": share", "%.2f %%", b.Weight)
		l.add(name+": load balancer", "%s", b.LoadBalancer)
		l.add(name+": time of the application", "%s", b.Timeout)
		l.add(name+": header edits", "%s", strings.Join(b.Edits, "; "))
		l.target(name, &b.Target)
		var over []string
		for _, f := range b.Failover {
			over = append(over, f.text())
			l.target(name+": failover to "+f.text(), f)
		}
		l.add(name+": failover", "%s", strings.Join(over, ", "))
	}
	for _, p := range x.Problems {
		l.add("problem "+p, "yes")
	}
	return l
}

func (l *factList) target(name string, t *Target) {
	l.add(name+": filter", "%s", t.Filter)
	l.add(name+": mesh gateways", "%s", t.Gateway)
	if !t.Hidden {
		l.add(name+": instances", "%d, %d healthy", len(t.Endpoints), t.Healthy)
		var at []string
		for _, e := range t.Endpoints {
			at = append(at, e.Address)
		}
		slices.Sort(at)
		l.add(name+": addresses", "%s", strings.Join(at, " "))
	}
	if a := t.Authorization; a != nil {
		l.add(name+": decision", "%s: %s", a.Verdict, a.Reason)
	}
}

// text is a value as JSON, which always can be written.
func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil || string(b) == "null" {
		return ""
	}
	return string(b)
}
