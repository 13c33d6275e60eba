// Package spelling finds the name that was probably meant by a mistyped one.
package spelling

import "slices"

// Nearest returns the name nearest to word by the number of letters to change, the first in order among equals. It is
// empty if none is near: more than a third of the letters would have to change.
func Nearest(word string, names []string) string {
	best, least := "", max(1, len(word)/3)+1
	for _, name := range slices.Sorted(slices.Values(names)) {
		if d := distance(word, name); d < least {
			best, least = name, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete or replace to make a from b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
