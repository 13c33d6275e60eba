package membership

import (
	"cmp"
	"strings"
)

// compareVersions orders semantic versions (semver.org, section 11): by their numbers, with a pre-release before its
// release; what follows a plus sign does not count. A part that is no number counts as text. No version at all comes
// first.
func compareVersions(x, y string) int {
	x, preX := splitVersion(x)
	y, preY := splitVersion(y)
	if x == "" || y == "" {
		return cmp.Compare(len(x), len(y))
	}
	if c := compareParts(x, y, "0"); c != 0 {
		return c
	}
	if preX == "" || preY == "" {
		return cmp.Compare(len(preY), len(preX))
	}
	return compareParts(preX, preY, "")
}

func splitVersion(v string) (numbers, pre string) {
	v, _, _ = strings.Cut(strings.TrimPrefix(strings.TrimSpace(v), "v"), "+")
	numbers, pre, _ = strings.Cut(v, "-")
	return numbers, pre
}

// compareParts compares part by part; a missing part counts as the given one.
func compareParts(x, y, missing string) int {
	a, b := strings.Split(x, "."), strings.Split(y, ".")
	for i := range max(len(a), len(b)) {
		if c := comparePart(at(a, i, missing), at(b, i, missing)); c != 0 {
			return c
		}
	}
	return 0
}

func at(parts []string, i int, missing string) string {
	if i < len(parts) {
		return parts[i]
	}
	return missing
}

// comparePart compares numbers by value, of any size, and anything else as text, which comes after numbers. Nothing
// comes before everything.
func comparePart(x, y string) int {
	numX, numY := isNumber(x), isNumber(y)
	switch {
	case x == "" || y == "":
		return cmp.Compare(min(len(x), 1), min(len(y), 1))
	case numX && numY:
		x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
		return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y))
	case numX:
		return -1
	case numY:
		return 1
	}
	return cmp.Compare(x, y)
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
