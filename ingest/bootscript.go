package ingest

import (
	"encoding/binary"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// bootVariables returns the boot variables that a boot script uses, and the
// paths it uses each with: "$NAME/PATH". A boot script is term_to_binary/1 of a
// script term, and its paths are strings of bytes there (STRING_EXT: 107, two
// bytes of length), so they are found without reading the whole term.
func bootVariables(script []byte) map[string][]string {
	const stringExt = 107
	found := map[string][]string{}
	seen := map[string]bool{}
	for i := 0; i+4 < len(script) && len(seen) < maxVariablePaths; i++ {
		if script[i] != stringExt || script[i+3] != '$' {
			continue
		}
		end := i + 3 + int(binary.BigEndian.Uint16(script[i+1:]))
		if end < i+4 || end > len(script) {
			continue
		}
		text := string(script[i+4 : end])
		name, rest, ok := strings.Cut(text, "/")
		if !ok || !isVariable(name) || found[name] == nil && len(found) == maxVariables {
			continue
		}
		if !seen[text] {
			seen[text] = true
			found[name] = append(found[name], rest)
		}
		i = end - 1
	}
	return found
}

// What a script may use of variables; the rest is not looked at.
const (
	maxVariables     = 32
	maxVariablePaths = 10_000
)

func isVariable(name string) bool {
	return varTarName.MatchString(name + ".tar.gz")
}

// placeVariables says which directory of the tree each variable must stand
// for, and warns of code directories that the tree does not have.
func (r *release) placeVariables(used map[string][]string) []BootVariable {
	var variables []BootVariable
	for _, name := range slices.Sorted(maps.Keys(used)) {
		if name == "ROOT" {
			r.warnOfMissing(".", name, used[name])
			continue
		}
		v := BootVariable{Name: name}
		most := 0
		for _, dir := range []string{"lib", "."} {
			if n := len(used[name]) - len(r.missing(dir, used[name])); n > most {
				v.Directory, most = dir, n
			}
		}
		variables = append(variables, v)
		if v.Directory == "" {
			r.report.warn(fmt.Sprintf("the boot script uses $%s, and the bundle has nothing of what it asks for there: slaves need -boot_var %s DIRECTORY", name, name))
			continue
		}
		r.report.note(fmt.Sprintf("the boot script uses $%s, which eboot's loader finds; with `loader: stock`, slaves need -boot_var %s %s", name, name, path.Join("ROOTDIR", v.Directory)))
		r.warnOfMissing(v.Directory, name, used[name])
	}
	return variables
}

// missing returns the paths that nothing stands at below dir of the tree.
func (r *release) missing(dir string, paths []string) []string {
	return slices.DeleteFunc(slices.Clone(paths), func(p string) bool {
		at, result := r.tree.resolve(path.Join(dir, p))
		return result == resolved && r.tree.nodes[at] != nil
	})
}

func (r *release) warnOfMissing(dir, name string, paths []string) {
	if missing := r.missing(dir, paths); len(missing) > 0 {
		r.report.warn(fmt.Sprintf("the boot script asks for $%s/%s, which the bundle does not have (%d of %d code directories)", name, missing[0], len(missing), len(paths)))
	}
}
