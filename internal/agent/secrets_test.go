package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/config"
	"eboot/internal/identity"
	"eboot/internal/testutil"
)

// testAuthority makes what servers know each other by.
type testAuthority struct {
	*identity.Authority
	pem []byte
}

func newTestAuthority(t *testing.T, cluster string) testAuthority {
	t.Helper()
	a, pair, err := identity.NewAuthority(cluster, 24*time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return testAuthority{a, pair.Certificate}
}

// secures replaces tls.insecure in a configuration by certificates, in the data directory's
// neighbourhood.
func (a testAuthority) secures(t *testing.T, c *config.Config, name string, lifetime time.Duration, gossipKeys ...string) {
	t.Helper()
	pair, _, err := a.Issue(identity.Request{Role: identity.Server, Name: name, Lifetime: lifetime}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c.TLS = config.TLS{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	c.Gossip.KeyFile = filepath.Join(dir, "gossip.key")
	c.API = config.API{Socket: filepath.Join(dir, "api.sock")}
	replace(t, c.TLS.CA, a.pem)
	replace(t, c.TLS.Cert, pair.Certificate)
	replace(t, c.TLS.Key, pair.Key)
	replace(t, c.Gossip.KeyFile, []byte(strings.Join(gossipKeys, "\n")))
}

func replace(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path+".new", content, 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

func keyText(b byte) string { return fmt.Sprintf("%x", bytes.Repeat([]byte{b}, 32)) }

// secureServers are the settings of n servers that found a cluster, and of one that joins.
func secureServers(t *testing.T, a testAuthority, n int, key string) []config.Config {
	t.Helper()
	all := make([]config.Config, n+1)
	var seeds []string
	for i := range all {
		c := settings(t)
		address := c.Boot.Bind[0]
		c.Cluster.Name, c.Cluster.Expect = "test", n
		c.Peer.Bind, c.Gossip.Bind = netip.AddrPortFrom(address, 14381), netip.AddrPortFrom(address, 14382)
		c.Publish.Wait = 5 * time.Second
		a.secures(t, &c, fmt.Sprint("boot", i+1), 12*time.Hour, key)
		seeds = append(seeds, c.Gossip.Bind.String())
		all[i] = c
	}
	for i := range all {
		all[i].Gossip.Seeds = seeds
	}
	all[n].Cluster.Expect = 0
	return all
}

// Three servers with certificates are one, their certificates and the key of their gossip
// change while they run, and who has the key and no certificate is not taken in.
func TestServersWithCertificates(t *testing.T) {
	t.Parallel()
	ca := newTestAuthority(t, "test")
	configs := secureServers(t, ca, 3, keyText(1))
	servers := []*server{start(t, configs[0]), start(t, configs[1]), start(t, configs[2])}
	for _, s := range servers {
		testutil.Poll(t, 60*time.Second, "the server is to be a member and to know a leader", func() bool {
			return s.machine.State().Cluster() != "" && s.cluster.Standing() == nil
		})
	}
	servers[0].allow(t, "127.0.0.1/32", "stable")
	if outcome := servers[1].publish(t, "1", "stable"); len(outcome.Bundles[0].Holders) != 3 {
		t.Fatalf("published: %+v", outcome)
	}
	for _, s := range servers {
		s.ready(t)
		s.boots(t, "127.0.0.1", "1")
	}
	m, err := servers[2].client.Members(t.Context())
	if err != nil || len(m.Members) != 3 || len(m.Warnings) > 0 {
		t.Fatalf("members: %+v, %v", m, err)
	}
	for _, d := range m.Members {
		if left := time.Until(d.CertificateExpires); left < 11*time.Hour || left > 12*time.Hour {
			t.Errorf("%s: its certificate expires in %v", d.ID, left)
		}
	}

	// A member of gossip that has no certificate of this authority.
	newTestAuthority(t, "test").secures(t, &configs[3], "boot4", time.Hour, keyText(1))
	stranger := start(t, configs[3])
	testutil.Poll(t, 20*time.Second, "gossip is to know the stranger", func() bool { return servers[0].peers.alive(stranger.server) })
	leader, followers := leading(t, servers)
	leader.says(t, "refused a connection to the peer port", "certificate")
	for range 3 {
		leader.allow(t, "10.0.0.0/24", "stable") // the cluster goes on meanwhile
		for _, raft := range leader.cluster.Status().Servers {
			if raft.ID == stranger.server {
				t.Fatal("it has become a member")
			}
		}
		if !errors.Is(stranger.Fresh(t.Context()), eboot.ErrNoLeader) || stranger.machine.State().Cluster() != "" {
			t.Fatal("it takes part")
		}
		select { // two looks of a leader at who might join
		case <-time.After(standingEvery):
		case <-t.Context().Done():
		}
	}
	testutil.Poll(t, 20*time.Second, "the list of members is to say why it waits", func() bool {
		m, err := followers[0].client.Members(t.Context())
		return err == nil && slices.ContainsFunc(m.Members, func(d eboot.MemberDetail) bool {
			return d.ID == stranger.server && d.Role == roleWaiting && strings.Contains(d.Problem, "certificate")
		})
	})
	stranger.stop(t)

	// A certificate that is about to expire is said; the next is taken without a restart.
	follower := followers[0]
	i := slices.Index(servers, follower)
	pair, _, err := ca.Issue(identity.Request{Role: identity.Server, Name: "again", Lifetime: time.Minute}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	warned := func(part string) bool {
		status, err := follower.client.Status(t.Context())
		return err == nil && slices.ContainsFunc(status.Warnings, func(w string) bool { return strings.Contains(w, part) })
	}
	replace(t, configs[i].TLS.Key, pair.Key)
	testutil.Poll(t, patience, "half of a pair is to be complained of", func() bool { return warned("not taken") })
	replace(t, configs[i].TLS.Cert, pair.Certificate)
	testutil.Poll(t, patience, "the end of the certificate is to be announced", func() bool { return warned("expires on") })
	follower.says(t, "[WARN]", "expires on")
	if text := follower.metricsText(t); !strings.Contains(text, "eboot_certificate_expiry_seconds ") {
		t.Error("no metric of the expiry")
	}

	// The key of gossip changes in three steps; a damaged file changes nothing.
	replace(t, configs[0].Gossip.KeyFile, []byte("damaged"))
	testutil.Poll(t, 20*time.Second, "the damaged key file is to be complained of", func() bool {
		return slices.ContainsFunc(servers[0].warnings(), func(w string) bool { return strings.Contains(w, "the gossip keys stay as they were") })
	})
	if err := os.Chmod(configs[1].Gossip.KeyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	testutil.Poll(t, 20*time.Second, "the key file that everybody may read is to be complained of", func() bool {
		return slices.ContainsFunc(servers[1].warnings(), func(w string) bool { return strings.Contains(w, "chmod 0600") })
	})
	for _, keys := range [][]string{{keyText(1), keyText(2)}, {keyText(2), keyText(1)}, {keyText(2)}} {
		taken := map[*server]int{}
		for n, s := range servers {
			taken[s] = strings.Count(s.log.String(), "gossip keys have changed")
			replace(t, configs[n].Gossip.KeyFile, []byte(strings.Join(keys, "\n")))
		}
		for _, s := range servers {
			testutil.Poll(t, 20*time.Second, "the keys are to be taken", func() bool {
				return strings.Count(s.log.String(), "gossip keys have changed") > taken[s]
			})
			if len(s.peers.living()) != 2 {
				t.Errorf("with %d keys a server sees %d others", len(keys), len(s.peers.living()))
			}
		}
	}
	if w := servers[0].warnings(); len(w) > 0 && i != 0 {
		t.Errorf("warnings that are over: %q", w)
	}
	for n, s := range servers {
		if text := s.log.String(); strings.Contains(text, keyText(1)) || strings.Contains(text, keyText(2)) || strings.Contains(text, "PRIVATE") {
			t.Errorf("server %d logs a key", n)
		}
	}
}

// says waits until a line of the log has all parts.
func (s *server) says(t *testing.T, parts ...string) {
	t.Helper()
	testutil.Poll(t, 20*time.Second, fmt.Sprintf("the log is to say %q", parts), func() bool {
		for line := range strings.Lines(s.log.String()) {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				return true
			}
		}
		return false
	})
}

func (s *server) metricsText(t *testing.T) string {
	t.Helper()
	w := httptest.NewRecorder()
	s.metrics.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w.Body.String()
}

// A certificate that is not that of a server of this cluster is noticed before anything
// else begins.
func TestWrongCertificateDoesNotStart(t *testing.T) {
	t.Parallel()
	c := secureServers(t, newTestAuthority(t, "other"), 3, keyText(1))[0]
	_, err := New(Options{Config: c, Logger: (&logged{}).logger(t), Version: "test"})
	if !errors.Is(err, eboot.ErrInvalid) || !strings.Contains(err.Error(), `want that of a server of cluster "test"`) {
		t.Errorf("%v", err)
	}
}

// What should not stay as it is is said again and again.
func TestReminder(t *testing.T) {
	var r reminder
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	for _, step := range []struct {
		after     time.Duration
		now, want []string
	}{
		{0, []string{"insecure"}, []string{"insecure"}},
		{5 * time.Second, []string{"insecure"}, nil},
		{time.Hour, []string{"insecure", "expires"}, []string{"expires"}},
		{remindEvery, []string{"insecure", "expires"}, []string{"insecure"}},
		{remindEvery + time.Hour, []string{"insecure", "expires"}, []string{"expires"}},
		{remindEvery + 2*time.Hour, []string{"insecure"}, nil},
		{remindEvery + 3*time.Hour, []string{"insecure", "expires"}, []string{"expires"}},
		{-time.Hour, []string{"insecure"}, []string{"insecure"}},
	} {
		if got := r.due(step.now, noon.Add(step.after)); !slices.Equal(got, step.want) {
			t.Errorf("after %v: %q, want %q", step.after, got, step.want)
		}
	}
}

// A server without certificates says so in its log, too.
func TestInsecureIsSaid(t *testing.T) {
	t.Parallel()
	c := settings(t)
	c.TLS.Insecure = true
	c.Peer.Bind, c.Gossip.Bind = netip.AddrPortFrom(c.Boot.Bind[0], 14381), netip.AddrPortFrom(c.Boot.Bind[0], 14382)
	s := start(t, c)
	s.says(t, "[WARN]", "tls.insecure")
	status, err := s.client.Status(t.Context())
	if err != nil || !slices.ContainsFunc(status.Warnings, func(w string) bool { return strings.HasPrefix(w, "tls.insecure") }) {
		t.Errorf("status: %+v, %v", status.Warnings, err)
	}
}

// A server on an empty disk knows no token, which says nothing of the token: the next server does.
func TestTokenOfAServerWithoutACluster(t *testing.T) {
	t.Parallel()
	where, startFirst := grouped(t, 2)
	_, startSecond := grouped(t, 2, where)
	first := startFirst()
	text := eboot.FormatToken([8]byte{1}, [32]byte{2})
	if _, err := first.TokenOf(text); !errors.Is(err, eboot.ErrUnavailable) {
		t.Errorf("in no cluster: %v", err)
	}
	if _, err := first.TokenOf("text"); !errors.Is(err, eboot.ErrUnauthenticated) {
		t.Errorf("no token at all: %v", err)
	}
	startSecond()
	testutil.Poll(t, patience, "the cluster is to be founded", func() bool { return first.machine.State().Cluster() != "" })
	if _, err := first.TokenOf(text); !errors.Is(err, eboot.ErrUnauthenticated) {
		t.Errorf("in a cluster: %v", err)
	}
}
