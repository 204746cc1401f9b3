package loader

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"eboot"
)

// escript runs testdata/judge.escript, or skips the test where there is no Erlang.
func escript(t *testing.T, args ...string) string {
	t.Helper()
	program, err := exec.LookPath("escript")
	if err != nil {
		if os.Getenv("EBOOT_REQUIRE_ERL") == "1" {
			t.Fatal(err)
		}
		t.Skip("no escript on PATH")
	}
	cmd := exec.Command(program, append([]string{"testdata/judge.escript"}, args...)...)
	cmd.Env = append(os.Environ(), "LANG=C.UTF-8", "ERL_CRASH_DUMP_SECONDS=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s%s", err, out, stderr.Bytes())
	}
	return string(out)
}

// TestAgainstErlang rewrites boot scripts of real releases and of random terms of every type,
// and lets Erlang compare what it reads from the results with a model of the rewriting, and
// what it reads from the text with the script.
func TestAgainstErlang(t *testing.T) {
	for _, config := range []bool{true, false} {
		t.Run(fmt.Sprintf("config=%v", config), func(t *testing.T) { againstErlang(t, config) })
	}
}

func againstErlang(t *testing.T, config bool) {
	const random = 100
	dir := t.TempDir()
	escript(t, "make", dir, fmt.Sprint(random))
	for _, name := range glob(t, "testdata/*.boot") {
		write(t, filepath.Join(dir, filepath.Base(name)), read(t, name))
	}
	r := rewriting(config)
	_, code, err := Build(r.ERTS)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "beam"), code)
	write(t, filepath.Join(dir, "options"), fmt.Appendf(nil, `{beam,%q}. {digest,<<%q>>}. {bundle,<<%q>>}. {script,<<%q>>}. {config,%v}.
		{vars,[{"LIB","lib"},{"RELEASE_LIB","lib"}]}.`,
		filepath.Join(dir, "beam"), r.Digest, r.Bundle, r.Script, config))
	boots := glob(t, filepath.Join(dir, "*.boot"))
	for _, name := range boots {
		script := read(t, name)
		out, err := Rewrite(script, r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		write(t, strings.TrimSuffix(name, "boot")+"rewritten", out)
		text, err := Text(script)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		write(t, strings.TrimSuffix(name, "boot")+"text", []byte(text))
	}
	judged, texts := 0, 0
	for line := range strings.Lines(escript(t, "check", dir)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasSuffix(line, " read"):
			judged++
			texts++
		case strings.Contains(line, " unread: "): // pids, funs and long binaries have no text that can be read
			judged++
		default:
			t.Error(line)
		}
	}
	if want := len(boots); judged != want || texts < want/3 || want < random+3 {
		t.Errorf("%d scripts, %d judged, the text of %d read", want, judged, texts)
	}
	t.Logf("%d scripts, the text of %d read back", judged, texts)
}

// rewriting is that of a bundle that looks like a release of mix, and has what the
// random scripts speak of.
func rewriting(config bool) Rewriting {
	return Rewriting{
		Digest: eboot.Digest{0xab, 31: 0xcd}, Bundle: eboot.Ref{Name: "shop", Version: "1.4"}, Script: "releases/1/start.boot", ERTS: "13.1.5", SysConfig: config,
		Tree: treeOf("releases/1/consolidated", "releases/0.1.0/consolidated", "lib/a-1/ebin", "lib/日本",
			"lib/elixir-1.14.0/ebin", "lib/logger-1.14.0/ebin", "lib/demo-0.1.0/ebin", "lib/iex-1.14.0/ebin",
			"one/b/ebin", "two/b/ebin"),
	}
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(names), err)
	}
	return names
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
