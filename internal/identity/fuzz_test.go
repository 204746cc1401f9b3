package identity

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"eboot"
	"eboot/internal/testutil"
)

// The files of testdata are throw-away: ca.pem and boot1*.pem are of `eboot tls`, openssl*.pem of
// OpenSSL 3, with its text before the block.
func file(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Files of any content are authorities, or a certificate with its key, or refused; what is set aside
// for them is in proportion, and no error shows a line of a key.
func FuzzIdentityFiles(f *testing.F) {
	for _, seed := range [][3]string{{"ca.pem", "boot1.pem", "boot1-key.pem"}, {"openssl.pem", "openssl.pem", "openssl-key.pem"}, {"boot1.pem", "ca.pem", "openssl-key.pem"}} {
		f.Add(file(f, seed[0]), file(f, seed[1]), file(f, seed[2]))
	}
	f.Add(append(file(f, "ca.pem"), file(f, "openssl.pem")...), file(f, "boot1-key.pem"), file(f, "boot1.pem"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, ca, certificate, key []byte) {
		refused := func(err error) {
			if !errors.Is(err, eboot.ErrInvalid) {
				t.Fatalf("error %v is not ErrInvalid", err)
			}
			for line := range strings.Lines(string(key)) {
				if line = strings.TrimSpace(line); len(line) > 40 && strings.Contains(err.Error(), line) {
					t.Fatalf("the error shows the key: %v", err)
				}
			}
		}
		set := testutil.Allocated(func() {
			if _, err := readAuthorities(ca); err != nil {
				refused(err)
			}
			pair := Pair{Certificate: certificate, Key: key}
			if _, err := readPair(pair); err != nil {
				refused(err)
			}
			a, err := ReadAuthority(pair)
			if err != nil {
				refused(err)
			} else if checkCluster(a.Cluster()) != nil || a.Expires().IsZero() {
				t.Fatalf("an authority of %q until %s", a.Cluster(), a.Expires())
			}
		})
		if size := len(ca) + len(certificate) + len(key); set > uint64(1<<20+200*size) {
			t.Fatalf("%d bytes set aside for %d", set, size)
		}
	})
}

// A certificate of any content, as another side of a connection may send it, has a name or is
// refused. One that no authority of ours has signed is never let in.
func FuzzCertificate(f *testing.F) {
	for _, name := range []string{"ca.pem", "boot1.pem", "openssl.pem"} {
		block, _ := pem.Decode(file(f, name))
		if block == nil {
			f.Fatalf("%s holds no block", name)
		}
		f.Add(block.Bytes)
	}
	dir := f.TempDir()
	authority, own, err := NewAuthority("prod", DefaultAuthorityLifetime, noon)
	if err != nil {
		f.Fatal(err)
	}
	pair, _, err := authority.Issue(Request{Role: Server, Name: "a", Lifetime: day}, noon)
	if err != nil {
		f.Fatal(err)
	}
	for name, content := range map[string][]byte{"ca": own.Certificate, "cert": pair.Certificate, "key": pair.Key} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			f.Fatal(err)
		}
	}
	c, err := Open(Options{Cluster: "prod", CA: filepath.Join(dir, "ca"), Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		if n, err := NameOf(certificate); err == nil {
			if n.Check() != nil {
				t.Fatalf("a name %+v", n)
			}
		} else if !errors.Is(err, eboot.ErrInvalid) {
			t.Fatalf("error %v is not ErrInvalid", err)
		}
		if err := c.CheckServer([]*x509.Certificate{certificate, certificate}); !errors.Is(err, eboot.ErrDenied) {
			t.Fatalf("a server that nobody knows: %v", err)
		}
		if n, _, err := c.CheckOperator([]*x509.Certificate{certificate}); !errors.Is(err, eboot.ErrDenied) {
			t.Fatalf("an operator %s that nobody knows: %v", n, err)
		}
	})
}
