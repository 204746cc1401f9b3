package bundlefs

import (
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"eboot"
)

// otpDiffers lists the names whose answers are not those of OTP's server, and why.
var otpDiffers = map[string]string{
	"nothing/../f":       "names are normalised lexically",
	"f/../f":             "names are normalised lexically",
	"f/..":               "names are normalised lexically",
	"lib/x.ez/../../f":   "names are normalised lexically; OTP looks for .. in the archive",
	"lib/x.ez/.":         "the same",
	"lib/x.ez//x-1":      "the same, for an empty component",
	"lib/x.ez/x-1/":      "OTP finds no directory to list and an empty file to get",
	"lib/x.ez/x-1/ebin/": "the same",
	"lib/broken.ez":      "a broken archive is a file; OTP's answers fit to neither file nor directory",
	"lib/broken.ez/a":    "the same",
	"lib/dir.ez":         "a directory is a directory; OTP cannot look into one of this name",
	"lib/dir.ez/inner":   "the same",
	"f\x00":              "badarg is no Errno",
	"/":                  "the host is not served",
	"..":                 "the host is not served",
	"/etc":               "the host is not served",
}

// TestAgainstOTP asks the functions behind erl_boot_server and a Tree the same
// questions about the same files.
func TestAgainstOTP(t *testing.T) {
	if _, err := exec.LookPath("escript"); err != nil {
		t.Skip("no Erlang here")
	}
	dir := t.TempDir()
	for _, d := range []string{"bin", "d/sub", "lib/dir.ez", "x-1/ebin", "x-1/empty"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for p, content := range map[string]string{"f": "hello\n", "x-1/ebin/m.beam": strings.Repeat("m", 5000), "x-1/ebin/n.beam": "n",
		"bin/start.boot": "boot", "sys.config": "[].", "top.txt": "top", "lib/broken.ez": "PK and so on", "lib/dir.ez/inner": "i", "ä": "umlaut", "lib/x.ezz": "no archive"} {
		if err := os.WriteFile(filepath.Join(dir, p), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for p, target := range map[string]string{"lf": "f", "ld": "d", "loop": "loop", "dangling": "nowhere", "lib/link.ez": "x.ez", "lib/plain": "x.ez",
		"lib/up": "../d/../lf", "lib/abs": dir + "/ld/sub", "through": "f/x"} {
		if err := os.Symlink(target, filepath.Join(dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("n", 256)
	names := []string{"", ".", "./", "d", "d/", "d/.", "d/sub/..", "f", "f/", "f/.", "f/x", "f/x/", "lf", "lf/", "lf/x", "ld", "ld/", "ld/.", "ld/sub", "ld/sub/..",
		"loop", "loop/", "loop/x", "dangling", "dangling/", "dangling/x", "through", "nothing", "nothing/", "nothing/x", "ä", "ö", "lib/up", "lib/up/x", "lib/abs", "lib/abs/x",
		long, long[1:], "nothing/" + long, "f/" + long, "d/" + long, "ld/" + long + "/x", strings.Repeat("./", 2047) + "f", strings.Repeat("./", 2048) + "f", strings.Repeat("d/", 2048) + "f",
		"lib/x.ezz", "lib/x.ezz/a", "lib/x.ez", "lib/x.ez/", "lib/x.ez/top.txt", "lib/x.ez/x-1", "lib/x.ez/x-1/ebin", "lib/x.ez/x-1/ebin/m.beam", "lib/x.ez/x-1/ebin/m.beam/", "lib/x.ez/x-1/ebin/m.beam/x",
		"lib/x.ez/x-1/ebin/none.beam", "lib/x.ez/x-1/empty", "lib/x.ez/none/none", "lib/y.ez", "lib/y.ez/x-1", "lib/y.ez/x-1/ebin", "lib/y.ez/x-1/ebin/m.beam",
		"lib/link.ez", "lib/link.ez/top.txt", "lib/plain", "lib/plain/top.txt", "lib/none.ez", "lib/none.ez/a", "none/x.ez", "none/x.ez/a", "f/x.ez", "f/x.ez/a", ".ez", ".ez/a", dir + "/f", dir + "/lib//x.ez/top.txt", dir}
	for name := range otpDiffers {
		names = append(names, name)
	}
	slices.Sort(names)
	answers := askOTP(t, dir, names)
	tree := treeOf(t, dir)
	for i, name := range names {
		got := []string{encoded(get(tree, name)), encoded(strings.Trim(list(tree, name), "[]")), otpStat(tree, name, true), otpStat(tree, name, false)}
		why, differs := otpDiffers[name]
		if same := slices.Equal(got, answers[i]); same == differs {
			t.Errorf("%.60q (differs: %q):\n got %.200q\n OTP %.200q", name, why, got, answers[i])
		}
	}
}

func askOTP(t *testing.T, dir string, names []string) [][]string {
	t.Helper()
	var lines strings.Builder
	for _, name := range names {
		fmt.Fprintf(&lines, "%x\n", name)
	}
	file := filepath.Join(t.TempDir(), "names")
	if err := os.WriteFile(file, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("escript", "testdata/prim.escript", dir, file)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("escript: %v\n%s", err, out)
	}
	var answers [][]string
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		for i := range 2 {
			fields[i] = strings.ToLower(fields[i])
		}
		answers = append(answers, fields)
	}
	if len(answers) != len(names) {
		t.Fatalf("%d answers to %d names:\n%.2000s", len(answers), len(names), out)
	}
	return answers
}

// treeOf reads dir into a Tree with dir as its root.
func treeOf(t *testing.T, dir string) *Tree {
	t.Helper()
	s := spec{}
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		switch {
		case err != nil || rel == ".":
			return err
		case e.IsDir():
			s[rel] = "d"
		case e.Type()&os.ModeSymlink != 0:
			target, err := os.Readlink(p)
			s[rel] = "l " + target
			return err
		default:
			content, err := os.ReadFile(p)
			s[rel] = string(content)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	tree, _ := build(t, s, Options{Roots: []string{dir}, Bundle: eboot.Bundle{}})
	return tree
}

func encoded(s string) string {
	for _, text := range errnoText {
		if s == text {
			return strings.ToLower(s)
		}
	}
	return "+" + hex.EncodeToString([]byte(s))
}

func otpStat(tree *Tree, name string, follow bool) string {
	info, err := tree.Stat([]byte(name), follow)
	if err != nil {
		return strings.ToLower(errorText(err))
	}
	kind := map[eboot.Kind]string{eboot.KindFile: "regular", eboot.KindDirectory: "directory", eboot.KindSymlink: "symlink"}[info.Kind]
	return fmt.Sprintf("+%s/%d", kind, info.Size)
}
