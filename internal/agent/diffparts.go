package agent

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"syscall"

	"eboot"
	"eboot/api"
)

// application is a directory of a bundle that is directly below lib.
type application struct {
	name, version string
	dir           string // lib/NAME-VERSION or lib/NAME
	absent        bool   // it is not there, and stands for the other of its pair
}

// applications returns those of a bundle, by directory.
func applications(m *eboot.Manifest) (all []application) {
	for i := range m.Entries {
		e := &m.Entries[i]
		base, ok := strings.CutPrefix(e.Path, "lib/")
		if !ok || e.Kind != eboot.KindDirectory || strings.Contains(base, "/") {
			continue
		}
		app := application{name: base, dir: e.Path}
		// A version begins with a digit, and may have a hyphen in it: 1.0.0-rc.1.
		for at := 1; at+1 < len(base); at++ {
			if base[at] == '-' && base[at+1] >= '0' && base[at+1] <= '9' {
				app.name, app.version = base[:at], base[at+1:]
				break
			}
		}
		all = append(all, app)
	}
	return all
}

// pairApplications returns what is to be compared with what, by name: directories of one name,
// then applications of one name, then what has no other.
func pairApplications(from, to []application) (pairs [][2]application) {
	sameDir := make(map[string]bool, len(from))
	for _, a := range from {
		sameDir[a.dir] = true
	}
	free := make(map[string][]application, len(to)) // by name
	for _, b := range to {
		if sameDir[b.dir] {
			pairs = append(pairs, [2]application{b, b})
			delete(sameDir, b.dir)
		} else {
			free[b.name] = append(free[b.name], b)
		}
	}
	for _, a := range from {
		others := free[a.name]
		switch {
		case !sameDir[a.dir]: // it has its pair
		case len(others) > 0:
			pairs = append(pairs, [2]application{a, others[0]})
			free[a.name] = others[1:]
		default:
			gone := a
			gone.absent = true
			pairs = append(pairs, [2]application{a, gone})
		}
	}
	for _, others := range free {
		for _, b := range others {
			before := b
			before.absent = true
			pairs = append(pairs, [2]application{before, b})
		}
	}
	slices.SortFunc(pairs, func(a, b [2]application) int {
		return cmp.Or(cmp.Compare(a[0].name, b[0].name), cmp.Compare(a[0].dir, b[0].dir))
	})
	return pairs
}

// releaseDirectories returns the directories releases/VERSION of the boot scripts; false: they are
// to be compared by their names.
func releaseDirectories(fromTree *eboot.Manifest, before eboot.Bundle, toTree *eboot.Manifest, after eboot.Bundle) (from, to string, ok bool) {
	from, to = path.Dir(before.BootScript), path.Dir(after.BootScript)
	ok = from != to && path.Dir(from) == "releases" && path.Dir(to) == "releases" && fromTree.Find(to) == nil && toTree.Find(from) == nil
	return from, to, ok
}

// Limits of the difference between two boot scripts.
const (
	maxDiffText  = 4 << 20 // bytes of it
	maxDiffCells = 4 << 20 // pairs of instructions that are looked at; beyond it every one counts as replaced
)

// diffScripts compares boot scripts instruction by instruction, or says why it cannot.
func diffScripts(from *servedTree, fromPath string, to *servedTree, toPath string) (lines []string, warning string, err error) {
	before, err := scriptLines(from, fromPath)
	var after []string
	if err == nil {
		after, err = scriptLines(to, toPath)
	}
	var errno syscall.Errno // of a link that leads nowhere
	switch {
	case errors.Is(err, eboot.ErrInvalid) || errors.As(err, &errno):
		return nil, err.Error(), nil
	case err != nil:
		return nil, "", err
	}
	lines = diffLines(before, after)
	size := 0
	for i, line := range lines {
		if size += len(line); size > maxDiffText || i == api.MaxDifferences {
			return lines[:i], fmt.Sprintf("%d more lines differ", len(lines)-i), nil
		}
	}
	return lines, "", nil
}

// scriptLines returns the name of a boot script and its instructions. eboot.ErrInvalid: it
// cannot be read as one.
func scriptLines(tree *servedTree, name string) ([]string, error) {
	script, err := tree.published([]byte(name))
	if err != nil {
		return nil, fmt.Errorf("boot script %s: %w", name, err)
	}
	text, err := shownScripts{}.text(script)
	if err != nil {
		return nil, fmt.Errorf("boot script %s: %w", name, err)
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n ]}.\n"), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSuffix(strings.TrimLeft(line, " ["), ",")
	}
	lines[0] += ",...}"
	return lines, nil
}

// diffLines returns what must be taken out of a, "- LINE", and put in, "+ LINE", to get b: as
// little as there can be, in order.
func diffLines(a, b []string) (lines []string) {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	// common[i*width+j] is how many lines a[i:] and b[j:] can keep in common: at most
	// the shorter, which has fewer than 2,100.
	width := len(b) + 1
	var common []uint16
	if (len(a)+1)*width <= maxDiffCells {
		common = make([]uint16, (len(a)+1)*width)
		for i := len(a) - 1; i >= 0; i-- {
			for j := len(b) - 1; j >= 0; j-- {
				if a[i] == b[j] {
					common[i*width+j] = common[(i+1)*width+j+1] + 1
				} else {
					common[i*width+j] = max(common[(i+1)*width+j], common[i*width+j+1])
				}
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case common != nil && i < len(a) && j < len(b) && a[i] == b[j]:
			i, j = i+1, j+1
		case i < len(a) && (common == nil || j == len(b) || common[(i+1)*width+j] >= common[i*width+j+1]):
			lines = append(lines, "- "+a[i])
			i++
		default:
			lines = append(lines, "+ "+b[j])
			j++
		}
	}
	return lines
}
