package test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"eboot/config"
	"eboot/internal/testutil"
)

// secretForms are the ways in which bytes may stand in a text or a file.
func secretForms(secret []byte) map[string][]byte {
	forms := map[string][]byte{
		"raw": secret, "hex": []byte(hex.EncodeToString(secret)), "HEX": []byte(strings.ToUpper(hex.EncodeToString(secret))),
		"hex with spaces": fmt.Appendf(nil, "% x", secret), "numbers": bytes.Trim(fmt.Append(nil, secret), "[]"),
		"quoted": bytes.Trim(fmt.Appendf(nil, "%q", secret), `"`),
	}
	// Base64 looks different at each of three places in what it encodes. What the bytes
	// around the secret have a part in is left out.
	for at := range 3 {
		padded := append(make([]byte, at), secret...)
		whole := len(padded) / 3 * 4
		for name, encoding := range map[string]*base64.Encoding{"base64": base64.StdEncoding, "base64url": base64.URLEncoding} {
			forms[fmt.Sprint(name, at)] = []byte(encoding.EncodeToString(padded)[(at*8+5)/6 : whole])
		}
	}
	return forms
}

// secretSearch looks for secrets in all their forms.
type secretSearch struct {
	secrets map[string][]byte
	forms   map[string][]byte // by secret and form
}

func (s *secretSearch) add(name string, secret []byte) {
	if s.forms == nil {
		s.secrets, s.forms = map[string][]byte{}, map[string][]byte{}
	}
	s.secrets[name] = secret
	for form, text := range secretForms(secret) {
		s.forms[name+", "+form] = text
	}
}

// find returns what stands in content.
func (s *secretSearch) find(content []byte) (found []string) {
	for name, text := range s.forms {
		if bytes.Contains(content, text) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}

// addFile adds what is secret in a file that eboot has made: its lines, and what they say.
func (s *secretSearch) addFile(t testing.TB, path string, passphrase string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(path)
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSpace(line)
		if len(line) > 30 && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "-----") && !strings.Contains(line, " ") {
			s.add(name+" as it is written", []byte(line))
		}
	}
	if block, _ := pem.Decode(content); block != nil {
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		switch key := key.(type) {
		case *ecdsa.PrivateKey:
			scalar, err := key.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			s.add(name, scalar)
		case ed25519.PrivateKey:
			s.add(name, key.Seed())
		default:
			t.Fatalf("%s holds a %T", path, key)
		}
	}
	if keys, err := config.ParseGossipKeys(content); err == nil {
		for i, key := range keys {
			s.add(fmt.Sprint(name, " ", i), key)
		}
	}
	if passphrase != "" {
		s.add("passphrase", []byte(passphrase))
	}
}

// The search finds a secret in each of its forms, wherever it stands.
func TestSecretSearchFinds(t *testing.T) {
	t.Parallel()
	secret := []byte("\x00\x01\xfe\xff\x80 0123456789abcdefghijklmn")
	var s secretSearch
	s.add("secret", secret)
	for _, around := range []int{0, 1, 2, 3, 7, 100} {
		text := slices.Concat(bytes.Repeat([]byte{0xa5}, around), secret, bytes.Repeat([]byte{0x5a}, around))
		for form, planted := range map[string][]byte{
			"raw": text, "hex": []byte(hex.EncodeToString(text)), "HEX": fmt.Appendf(nil, "%X", text), "hex with spaces": fmt.Appendf(nil, "% x", text),
			"numbers": fmt.Append(nil, text), "quoted": fmt.Appendf(nil, "%q", text),
			"base64": []byte(base64.RawStdEncoding.EncodeToString(text)), "base64url": []byte(base64.URLEncoding.EncodeToString(text)),
		} {
			if found := s.find(planted); !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, "secret, "+form) }) {
				t.Errorf("%d bytes around it, %s: found %q in %q", around, form, found, planted)
			}
		}
	}
	if found := s.find(bytes.Repeat([]byte("0123456789abcdefghijklm"), 100)); len(found) > 0 {
		t.Errorf("found %q where it is not", found)
	}
}

// places are where the secrets of a server must not be: what it logs, says and keeps, and
// what others on its machine see of it. Each is given to look once, by its name.
func (s *clusterServer) places(t testing.TB, look func(place string, content []byte)) {
	t.Helper()
	look(s.Name+"'s log", []byte(s.Output()))
	if s.Running() {
		for _, pid := range append(children(t, s.PID()), fmt.Sprint(s.PID())) { // the holder, and itself
			for _, file := range []string{"cmdline", "environ"} {
				content, err := os.ReadFile(filepath.Join("/proc", pid, file))
				if err != nil {
					t.Fatal(err)
				}
				look(fmt.Sprintf("%s's process %s: %s", s.Name, pid, file), content)
			}
		}
		for _, path := range []string{"/metrics", "/v1/cluster", "/v1/cluster/members", "/v1/bundles", "/v1/events"} {
			look(s.Name+"'s "+path, s.get(t, path))
		}
	}
	err := filepath.WalkDir(s.DataDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == s.DataDir {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		// What Raft makes of its own accord is for others to read: they cannot get to it.
		if top := filepath.Dir(path) == s.DataDir; top && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: others may use %s: %v", s.Name, path, info.Mode())
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		content, err := os.ReadFile(path)
		look(path, content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// children are the processes that a process has started.
func children(t testing.TB, pid int) (pids []string) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // each has its own
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of process %d: %q, %v", pid, threads, err)
	}
	for _, path := range threads {
		content, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
		pids = append(pids, strings.Fields(string(content))...)
	}
	return pids
}

// get is an answer of the server on its Unix socket.
func (s *clusterServer) get(t testing.TB, path string) []byte {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.socket())
	}}}
	response, err := client.Get("http://localhost" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK || len(content) == 0 {
		t.Fatalf("%s of %s: %s, %d bytes, %v", path, s.Name, response.Status, len(content), err)
	}
	return content
}

// Three servers with certificates that log everything take signed bundles, boot a node,
// get other keys, damaged ones too, are stopped, killed and started: nothing of a key is in what they
// log, say and keep, nor in what other users see of their processes. (S19)
func TestSecretsAreNowhereElse(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	keys := t.TempDir()
	const words = "correct horse battery staple of the signer"
	write(t, filepath.Join(keys, "words"), words+"\n")
	run(t, nil, "keygen", "bundle", "alice", "--out", keys, "--passphrase-file", filepath.Join(keys, "words")).want(t, 0)
	run(t, nil, "keygen", "bundle", "bob", "--out", keys, "--no-passphrase").want(t, 0)
	c := startCluster(t, 3, clusterOptions{Secure: true, Settings: []string{
		"EBOOT_LOG_LEVEL=trace", "EBOOT_TRUST_KEYS=" + filepath.Join(keys, "alice.pub") + "," + filepath.Join(keys, "bob.pub"),
	}})
	var search secretSearch
	search.addFile(t, filepath.Join(keys, "alice.key"), words)
	search.addFile(t, filepath.Join(keys, "bob.key"), "")
	search.addFile(t, filepath.Join(c.secrets(), "ca-key.pem"), "")
	addServerKeys := func() {
		search.addFile(t, filepath.Join(c.secrets(), "gossip.key"), "")
		for _, s := range c.servers {
			search.addFile(t, filepath.Join(c.secrets(), s.Name+"-key.pem"), "")
		}
	}
	addServerKeys()
	var said bytes.Buffer // by the commands
	do := func(args ...string) {
		t.Helper()
		r := c.Run(t, args...).want(t, 0)
		said.WriteString(r.Out + r.Err)
	}
	do("bundle", "publish", "otp", "1", smallTree(t, erl), "--dereference", "--erts", erl.ERTS, "--channel", "stable", "--sign-key", filepath.Join(keys, "alice.key"), "--passphrase-file", filepath.Join(keys, "words"))
	do("bundle", "sign", "otp@1", "--key", filepath.Join(keys, "bob.key"))
	do("slave", "allow", "127.0.0.0/8")
	c.WaitReady(t, erl, "127.0.0.1")
	c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses()})

	// Other keys, and then some that are damaged, of which a parser might complain in its own words.
	run(t, nil, "tls", "cert", "--ca", c.secrets(), "--name", c.servers[0].Name, "--out", c.secrets(), "--replace").want(t, 0)
	run(t, nil, "keygen", "gossip", "--rotate", filepath.Join(c.secrets(), "gossip.key")).want(t, 0)
	addServerKeys()
	c.giveKey(t)
	for _, s := range c.servers {
		s.logs(t, "gossip keys have changed")
	}
	c.servers[0].logs(t, "certificate loaded again")
	key := filepath.Join(c.secrets(), c.servers[1].Name+"-key.pem")
	whole, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, key, strings.Replace(string(whole), "-----END", "!!!!-----END", 1))
	gossip, err := os.ReadFile(c.servers[2].gossipKey())
	if err != nil {
		t.Fatal(err)
	}
	write(t, c.servers[2].gossipKey(), strings.TrimSpace(string(gossip))+"x\n")
	c.servers[1].logs(t, "tls.key")
	c.servers[2].logs(t, "the gossip keys stay as they were")
	for path, content := range map[string][]byte{key: whole, c.servers[2].gossipKey(): gossip} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	c.servers[0].Stop(t) // which makes a snapshot
	c.servers[0].Start(t)
	for _, s := range c.servers[1:] {
		s.Kill()
		s.Start(t)
	}
	c.WaitFormed(t)
	c.servers[1].logs(t, "everybody on this machine may read the key of the certificate")
	c.servers[2].logs(t, "everybody on this machine may read the key of gossip")
	do("cluster", "members")
	do("events")
	do("snapshot", "save", filepath.Join(keys, "snapshot"))
	c.WaitReady(t, erl, "127.0.0.1")
	c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses()})

	if len(search.secrets) < 12 {
		t.Errorf("only these are looked for: %q", search.secrets)
	}
	looked, size := 0, 0
	look := func(place string, content []byte) {
		looked, size = looked+1, size+len(content)
		if found := search.find(content); len(found) > 0 {
			t.Errorf("%s holds %q", place, found)
		}
	}
	began := time.Now()
	look("what commands have printed", said.Bytes())
	snapshot, err := os.ReadFile(filepath.Join(keys, "snapshot"))
	if err != nil {
		t.Fatal(err)
	}
	look("a backup", snapshot)
	for _, s := range c.servers {
		if !strings.Contains(s.Output(), "[TRACE]") && !strings.Contains(s.Output(), "[DEBUG]") {
			t.Errorf("%s does not log everything", s.Name)
		}
		s.places(t, look)
	}
	t.Logf("looked for %d secrets in %d forms, in %d places of %d bytes, in %v", len(search.secrets), len(search.forms), looked, size, time.Since(began).Round(time.Millisecond))

	// The way there is the right one: what is planted is found.
	planted := filepath.Join(c.servers[0].DataDir, "raft", "planted")
	secret := search.secrets["gossip.key 0"]
	if err := os.WriteFile(planted, slices.Concat([]byte("some"), secret, []byte("thing")), 0o600); err != nil {
		t.Fatal(err)
	}
	var found []string
	c.servers[0].places(t, func(place string, content []byte) {
		if place == planted {
			found = search.find(content)
		}
	})
	if !slices.Equal(found, []string{"gossip.key 0, raw"}) {
		t.Errorf("the key that was planted: found %q", found)
	}
}

// logs waits until the server has logged a text.
func (s *clusterServer) logs(t testing.TB, text string) {
	t.Helper()
	testutil.Poll(t, 30*time.Second, s.Name+" is to log "+text, func() bool { return strings.Contains(s.Output(), text) })
}
