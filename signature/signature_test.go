package signature_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"eboot"
	"eboot/signature"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func generate(t testing.TB) signature.SecretKey {
	t.Helper()
	k, err := signature.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func app() eboot.Bundle {
	return eboot.Bundle{
		Name: "app", Version: "1.2.3", ERTS: "13.1.5", Manifest: eboot.DigestOf([]byte("x")),
		BootScript: "releases/1.2.3/start.boot", SysConfig: "releases/1.2.3/sys.config",
	}
}

func signed(t testing.TB, b eboot.Bundle, keys ...signature.SecretKey) eboot.Bundle {
	t.Helper()
	for _, k := range keys {
		s, err := k.SignBundle(b)
		if err != nil {
			t.Fatal(err)
		}
		b.Signatures = append(b.Signatures, s)
	}
	return b
}

func trust(t testing.TB, threshold int, keys ...signature.SecretKey) signature.Trust {
	t.Helper()
	var public []signature.PublicKey
	for _, k := range keys {
		public = append(public, k.Public())
	}
	trusted, err := signature.NewTrust(public, threshold)
	if err != nil {
		t.Fatal(err)
	}
	return trusted
}

// What minisign made is read, checked and written as it was; what it signed is a
// statement as it is written here.
func TestFilesOfMinisign(t *testing.T) {
	public, err := signature.ParsePublicKey(read(t, "signer.pub"))
	if err != nil || public.ID.String() != "D5EFBE658D65766C" {
		t.Fatalf("public key %s: %v", public.ID, err)
	}
	line, _, _ := strings.Cut(string(read(t, "signer.pub"))[len("untrusted comment: minisign public key D5EFBE658D65766C\n"):], "\n")
	if alone, err := signature.ParsePublicKey([]byte(line)); err != nil || alone.ID != public.ID || !alone.Key.Equal(public.Key) {
		t.Errorf("the line alone: %v, %v", alone, err)
	}
	if text := public.Encode("minisign public key D5EFBE658D65766C"); !bytes.Equal(text, read(t, "signer.pub")) {
		t.Errorf("public key is written as\n%s", text)
	}
	secret, err := signature.ParseSecretKey(read(t, "signer.key"), nil)
	if err != nil || secret.Public().ID != public.ID || !secret.Public().Key.Equal(public.Key) {
		t.Fatalf("secret key: %v, %v", secret, err)
	}
	statement, err := signature.Statement(app())
	if err != nil || !bytes.Equal(statement, read(t, "app.statement")) {
		t.Fatalf("statement: %v\n%s", err, statement)
	}
	for name, legacy := range map[string]bool{"app.minisig": false, "app.legacy.minisig": true} {
		s, err := signature.Parse(read(t, name))
		if err != nil || s.Legacy != legacy {
			t.Fatalf("%s: %+v, %v", name, s, err)
		}
		if err := public.Verify(statement, s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		got, want := strings.SplitN(string(signature.Encode(s)), "\n", 2), strings.SplitN(string(read(t, name)), "\n", 2)
		if got[1] != want[1] {
			t.Errorf("%s is written as\n%s", name, got[1])
		}
	}
	// Ed25519 leaves nothing to chance: the same key and comment make the same signature.
	mine, err := secret.Sign(statement, "a trusted comment")
	theirs, _ := signature.Parse(read(t, "app.minisig"))
	if err != nil || !bytes.Equal(mine.Signature, theirs.Signature) {
		t.Errorf("signature %x, minisign's %x, %v", mine.Signature, theirs.Signature, err)
	}
}

// A byte that differs anywhere makes a signature void.
func TestVerifyRefuses(t *testing.T) {
	key, other := generate(t), generate(t)
	statement, err := signature.Statement(app())
	if err != nil {
		t.Fatal(err)
	}
	good, err := key.Sign(statement, "by me")
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Public().Verify(statement, good); err != nil {
		t.Fatal(err)
	}
	flipped := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	altered := map[string]eboot.Signature{}
	alter := func(name string, change func(*eboot.Signature)) {
		s := good
		change(&s)
		altered[name] = s
	}
	alter("signature", func(s *eboot.Signature) { s.Signature = flipped(s.Signature, 63) })
	alter("comment", func(s *eboot.Signature) { s.Comment = "by you" })
	alter("seal", func(s *eboot.Signature) { s.Sealed = flipped(s.Sealed, 0) })
	alter("algorithm", func(s *eboot.Signature) { s.Legacy = true })
	alter("key id", func(s *eboot.Signature) { s.KeyID = other.Public().ID })
	for name, s := range altered {
		if err := key.Public().Verify(statement, s); !errors.Is(err, eboot.ErrDenied) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	for at := range statement {
		if key.Public().Verify(flipped(statement, at), good) == nil {
			t.Errorf("byte %d of the statement may differ", at)
		}
	}
	impostor := other.Public()
	impostor.ID = key.Public().ID
	if err := impostor.Verify(statement, good); !errors.Is(err, eboot.ErrDenied) {
		t.Errorf("another key of the same id: %v", err)
	}
	short := good
	short.Sealed = nil
	if err := key.Public().Verify(statement, short); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("no seal: %v", err)
	}
}

// Every field of a statement is signed, and no two bundles have the same one.
func TestStatement(t *testing.T) {
	base, err := signature.Statement(app())
	if err != nil {
		t.Fatal(err)
	}
	back, err := signature.ParseStatement(base)
	if want := app(); err != nil || fmt.Sprint(back) != fmt.Sprint(want) {
		t.Errorf("came back as %v, %v", back, err)
	}
	for name, change := range map[string]func(*eboot.Bundle){
		"name": func(b *eboot.Bundle) { b.Name = "apq" }, "version": func(b *eboot.Bundle) { b.Version = "1.2.4" },
		"erts": func(b *eboot.Bundle) { b.ERTS = "13.1.6" }, "manifest": func(b *eboot.Bundle) { b.Manifest[31] ^= 1 },
		"boot script": func(b *eboot.Bundle) { b.BootScript = "x.boot" }, "sys.config": func(b *eboot.Bundle) { b.SysConfig = "" },
	} {
		b := app()
		change(&b)
		other, err := signature.Statement(b)
		if err != nil || bytes.Equal(other, base) {
			t.Errorf("another %s: the same statement, %v", name, err)
		}
		if _, err := signature.ParseStatement(other); err != nil {
			t.Errorf("another %s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*eboot.Bundle){
		"a line end in a path": func(b *eboot.Bundle) { b.BootScript = "p\nsys_config: q" },
		"a carriage return":    func(b *eboot.Bundle) { b.SysConfig = "p\r" },
		"no manifest":          func(b *eboot.Bundle) { b.Manifest = eboot.Digest{} },
		"no name":              func(b *eboot.Bundle) { b.Name = "" },
		"a bad version":        func(b *eboot.Bundle) { b.ERTS = "x\ny" },
	} {
		b := app()
		change(&b)
		if text, err := signature.Statement(b); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	for name, text := range map[string]string{
		"empty": "", "cut off": string(base[:len(base)-1]), "more": string(base) + "x", "another head": "eboot bundle signature v2" + string(base[len("eboot bundle signature v1"):]),
		"lines swapped": strings.Replace(string(base), "name: app\nversion: 1.2.3\n", "version: 1.2.3\nname: app\n", 1),
		"upper case":    strings.Replace(string(base), "manifest: 2d", "manifest: 2D", 1), "line ends": strings.ReplaceAll(string(base), "\n", "\r\n"),
		"long": strings.Repeat("x", signature.MaxStatementSize+1),
	} {
		if b, err := signature.ParseStatement([]byte(text)); !errors.Is(err, eboot.ErrInvalid) && !errors.Is(err, eboot.ErrTooLarge) {
			t.Errorf("%s: read as %v, %v", name, b, err)
		}
	}
}

// The check at the door: who has signed, whose signatures count, and how often.
func TestTrust(t *testing.T) {
	alice, bob, eve := generate(t), generate(t), generate(t)
	twice := signed(t, app(), alice)
	twice.Signatures = append(twice.Signatures, twice.Signatures[0])
	moved := signed(t, app(), alice)
	moved.Version = "1.2.4"
	swapped := signed(t, app(), alice)
	swapped.Manifest = eboot.DigestOf([]byte("other"))
	disguised := signed(t, app(), eve)
	disguised.Signatures[0].KeyID = alice.Public().ID
	unsignable := app()
	unsignable.BootScript = "a\nb"
	for name, tc := range map[string]struct {
		trust  signature.Trust
		bundle eboot.Bundle
		valid  int
		err    error
		text   string
	}{
		"nothing demanded":       {signature.Trust{}, app(), 0, nil, ""},
		"one of one":             {trust(t, 1, alice), signed(t, app(), alice), 1, nil, ""},
		"one of two":             {trust(t, 1, alice, bob), signed(t, app(), eve, bob), 1, nil, ""},
		"two of two":             {trust(t, 2, alice, bob), signed(t, app(), alice, bob), 2, nil, ""},
		"unsigned":               {trust(t, 1, alice), app(), 0, eboot.ErrDenied, "is not signed, want 1 of key " + alice.Public().ID.String()},
		"a stranger's":           {trust(t, 1, alice), signed(t, app(), eve), 0, eboot.ErrDenied, "key " + eve.Public().ID.String() + " is not trusted"},
		"a stranger as alice":    {trust(t, 1, alice), disguised, 0, eboot.ErrDenied, "does not match"},
		"one of two wanted":      {trust(t, 2, alice, bob), signed(t, app(), alice, eve), 1, eboot.ErrDenied, "of 1 trusted keys"},
		"one twice":              {trust(t, 2, alice, bob), twice, 1, eboot.ErrDenied, "of 1 trusted keys"},
		"of another version":     {trust(t, 1, alice), moved, 0, eboot.ErrDenied, "does not match"},
		"of another tree":        {trust(t, 1, alice), swapped, 0, eboot.ErrDenied, "does not match"},
		"paths of several lines": {trust(t, 1, alice), unsignable, 0, eboot.ErrInvalid, "cannot be signed"},
	} {
		t.Run(name, func(t *testing.T) {
			signers, err := tc.trust.Check(tc.bundle)
			if len(signers) != tc.valid || !errors.Is(err, tc.err) {
				t.Fatalf("%v, %v; want %d signers, %v", signers, err, tc.valid, tc.err)
			}
			if tc.text != "" && !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%v; want it to say %q", err, tc.text)
			}
		})
	}
	if _, err := signature.NewTrust([]signature.PublicKey{alice.Public(), alice.Public()}, 2); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("a key twice: %v", err)
	}
	for _, threshold := range []int{-1, 0, 2} {
		if _, err := signature.NewTrust([]signature.PublicKey{alice.Public()}, threshold); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("threshold %d of 1 key: %v", threshold, err)
		}
	}
	both := signed(t, app(), alice, eve).Signatures
	if err := trust(t, 1, alice).CheckSignature(app(), both[0]); err != nil {
		t.Errorf("alice's signature: %v", err)
	}
	if err := trust(t, 1, alice).CheckSignature(app(), both[1]); !errors.Is(err, eboot.ErrDenied) {
		t.Errorf("a stranger's signature: %v", err)
	}
	if err := (signature.Trust{}).CheckSignature(app(), both[1]); err != nil {
		t.Errorf("nothing demanded: %v", err)
	}
}

func TestSecretKeys(t *testing.T) {
	k := generate(t)
	open, err := k.Encode(rand.Reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := signature.ParseSecretKey(open, nil); err != nil || !back.Public().Key.Equal(k.Public().Key) || back.Public().ID != k.Public().ID {
		t.Errorf("an open key came back as %v, %v", back, err)
	}
	locked, err := k.Encode(rand.Reader, []byte("words"))
	if err != nil {
		t.Fatal(err)
	}
	say := func(words string) func() ([]byte, error) { return func() ([]byte, error) { return []byte(words), nil } }
	if back, err := signature.ParseSecretKey(locked, say("words")); err != nil || !back.Public().Key.Equal(k.Public().Key) {
		t.Errorf("an encrypted key came back as %v, %v", back, err)
	}
	if _, err := signature.ParseSecretKey(locked, say("other words")); !errors.Is(err, eboot.ErrDenied) || !strings.Contains(err.Error(), "passphrase") {
		t.Errorf("a wrong passphrase: %v", err)
	}
	silent := errors.New("nobody there")
	if _, err := signature.ParseSecretKey(locked, func() ([]byte, error) { return nil, silent }); !errors.Is(err, silent) {
		t.Errorf("no passphrase: %v", err)
	}
	again, err := k.Encode(rand.Reader, []byte("words"))
	if err != nil || bytes.Equal(again, locked) {
		t.Errorf("the salt is the same twice, %v", err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
		if text := fmt.Sprintf(format, k); text != "secret key "+k.Public().ID.String() {
			t.Errorf("%s shows %s", format, text)
		}
	}
}

// A file must not have us take more memory than minisign's own keys do.
func TestSecretKeyCosts(t *testing.T) {
	k := generate(t)
	locked, err := k.Encode(rand.Reader, []byte("words"))
	if err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]int{"opslimit": 38 + 7, "memlimit": 46 + 5, "memlimit of 2 GiB": 46 + 3} {
		data := decoded(t, locked)
		data[at] = 0x80
		if _, err := signature.ParseSecretKey(encoded(data), func() ([]byte, error) { return []byte("words"), nil }); !errors.Is(err, eboot.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	open, err := k.Encode(rand.Reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	halves := decoded(t, open)
	halves[54+8+32] ^= 1
	if _, err := signature.ParseSecretKey(encoded(halves), nil); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("a public half of another key: %v", err)
	}
}
