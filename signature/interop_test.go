package signature_test

import (
	"crypto/rand"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"eboot/signature"
)

func decoded(t *testing.T, text []byte) []byte {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(strings.Split(string(text), "\n")[1])
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func encoded(data []byte) []byte {
	return []byte("untrusted comment: x\n" + base64.StdEncoding.EncodeToString(data) + "\n")
}

// minisign itself, where it is installed: it verifies what is signed here, and signs with
// the keys that are made here, encrypted ones too.
func TestMinisign(t *testing.T) {
	program, err := exec.LookPath("minisign")
	if err != nil {
		t.Skip("minisign is not installed (Debian: apt-get install minisign)")
	}
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	minisign := func(input string, args ...string) (string, error) {
		cmd := exec.Command(program, args...)
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	k := generate(t)
	statement, err := signature.Statement(app())
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.SignBundle(app())
	if err != nil {
		t.Fatal(err)
	}
	message, public := file("app.statement", statement), file("k.pub", k.Public().Encode("of a test"))
	file("app.statement.minisig", signature.Encode(s))
	out, err := minisign("", "-Vm", message, "-p", public)
	if err != nil || !strings.Contains(out, signature.Comment(app())) {
		t.Fatalf("verify: %v: %s", err, out)
	}
	if out, err := minisign("", "-Vm", file("other", append(statement, '\n')), "-x", filepath.Join(dir, "app.statement.minisig"), "-p", public); err == nil {
		t.Fatalf("minisign verifies anything: %s", out)
	}
	for name, words := range map[string]string{"open": "", "locked": "some words"} {
		secret, err := k.Encode(rand.Reader, []byte(words))
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"-S", "-s", file(name+".key", secret), "-m", message, "-x", filepath.Join(dir, name+".minisig")}
		if words == "" {
			args = append(args, "-W")
		}
		if out, err := minisign(words+"\n", args...); err != nil {
			t.Fatalf("sign with the %s key: %v: %s", name, err, out)
		}
		text, err := os.ReadFile(filepath.Join(dir, name+".minisig"))
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := signature.Parse(text)
		if err == nil {
			err = k.Public().Verify(statement, theirs)
		}
		if err != nil {
			t.Errorf("what minisign signed with the %s key: %v", name, err)
		}
	}
}
