package test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// secrets is where the certificates and the key of the servers were made.
func (c *serverCluster) secrets() string { return filepath.Join(c.dir, "secrets") }

// makeSecrets does what the manual says, in three commands.
func (c *serverCluster) makeSecrets(t testing.TB) {
	t.Helper()
	var names []string
	for _, s := range c.servers {
		names = append(names, s.Name)
	}
	dir := c.secrets()
	run(t, nil, "tls", "ca", "--cluster", "test", "--out", dir).want(t, 0)
	run(t, nil, "tls", "cert", "--ca", dir, "--name", strings.Join(names, ","), "--out", dir).want(t, 0)
	run(t, nil, "keygen", "gossip", filepath.Join(dir, "gossip.key")).want(t, 0)
	c.giveKey(t)
}

// giveKey copies the key file to every server.
func (c *serverCluster) giveKey(t testing.TB) {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(c.secrets(), "gossip.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range c.servers {
		path := s.gossipKey()
		if err := os.WriteFile(path+".new", key, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
}

// gossipKey is the path of the server's key file; "": it has none.
func (s *clusterServer) gossipKey() string {
	if !s.cluster.opts.Secure {
		return ""
	}
	return filepath.Join(s.cluster.secrets(), s.Name+"-gossip.key")
}

// certificates is the section tls of the server's settings.
func (s *clusterServer) certificates() string {
	if !s.cluster.opts.Secure {
		return "tls: {insecure: true}"
	}
	dir := s.cluster.secrets()
	return fmt.Sprintf("tls: {ca: '%s', cert: '%s', key: '%s'}", filepath.Join(dir, "ca.pem"), filepath.Join(dir, s.Name+".pem"), filepath.Join(dir, s.Name+"-key.pem"))
}

// Three servers that know each other by certificates boot a node, also when the one that
// leads has died; a renewed certificate and another key of gossip need no restart; nobody
// without a certificate gets a word out of the peer port.
func TestSecureCluster(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 3, "127.0.0.0/8", clusterOptions{Secure: true})
	c.WaitReady(t, erl, "127.0.0.1")
	if out := c.Run(t, "cluster", "status").want(t, 0); strings.Contains(out.Out, "warning") {
		t.Errorf("a cluster with certificates is warned of: %v", out)
	}
	year := time.Now().Add(365 * 24 * time.Hour).UTC().Format(time.DateOnly)
	c.Run(t, "cluster", "members").want(t, 0).says(t, "CERT-EXPIRES", year)
	c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses()})

	for _, protocol := range []string{"eboot-raft/1", "eboot-blob/1", "eboot-rpc/1"} {
		if got := plainPeer(t, c.servers[0].Address, protocol); !strings.HasPrefix(got, "denied it does not speak TLS") {
			t.Errorf("%s without a certificate: %q", protocol, got)
		}
	}

	// A certificate of a month instead of a year.
	month := time.Now().Add(31 * 24 * time.Hour).UTC().Format(time.DateOnly)
	run(t, nil, "tls", "cert", "--ca", c.secrets(), "--name", c.servers[1].Name, "--days", "31", "--out", c.secrets(), "--replace").want(t, 0)
	c.servers[0].until(t, 20*time.Second, []string{month, year}, "cluster", "members")

	// Another key of gossip, in three steps.
	const taken = "gossip keys have changed"
	for range 3 {
		run(t, nil, "keygen", "gossip", "--rotate", filepath.Join(c.secrets(), "gossip.key")).want(t, 0)
		before := map[*clusterServer]int{}
		for _, s := range c.servers {
			before[s] = strings.Count(s.Output(), taken)
		}
		c.giveKey(t)
		for _, s := range c.servers {
			testutil.Poll(t, 30*time.Second, s.Name+" is to take the keys", func() bool { return strings.Count(s.Output(), taken) > before[s] })
		}
	}

	leader := c.Leader(t)
	leader.Kill()
	c.Followers(t)[0].until(t, 30*time.Second, []string{"leader  "}, "cluster", "members")
	began := time.Now()
	from, _ := c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses()})
	if from == leader {
		t.Error("booted from a server that is dead")
	}
	t.Logf("booted in %v with a dead server", time.Since(began).Round(time.Millisecond))
	leader.Start(t)
	c.WaitFormed(t)
	for _, s := range c.servers {
		secretsStaySecret(t, c, s)
	}
}

// secretsStaySecret looks for the keys in what a server has logged.
func secretsStaySecret(t testing.TB, c *serverCluster, s *clusterServer) {
	t.Helper()
	log := s.Output()
	for _, file := range []string{s.gossipKey(), filepath.Join(c.secrets(), s.Name+"-key.pem")} {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			if line = strings.TrimSpace(line); len(line) > 30 && line[0] != '#' && strings.Contains(log, line) {
				t.Errorf("%s logs what is in %s", s.Name, file)
			}
		}
	}
}

// plainPeer asks a peer port for a protocol without TLS, and returns the answer.
func plainPeer(t testing.TB, address, protocol string) string {
	t.Helper()
	conn, err := net.Dial("tcp", net.JoinHostPort(address, "4381"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(conn, "%s cluster=test from=x to=\n", protocol); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

// A cluster without certificates gets them one server at a time, as the manual says.
func TestInsecureClusterBecomesSecure(t *testing.T) {
	c := startCluster(t, 3, clusterOptions{})
	c.Allow(t, "10.1.0.0/16")
	c.opts.Secure = true
	c.makeSecrets(t)
	for _, s := range c.servers {
		s.Stop(t)
		s.Start(t)
		s.until(t, formDeadline, []string{s.ID(t)}, "cluster", "status")
	}
	c.WaitFormed(t)
	c.Allow(t, "10.2.0.0/16")
	c.Run(t, "slave", "list", "--entries").want(t, 0).says(t, "10.1.0.0/16", "10.2.0.0/16")
	for _, s := range c.servers {
		if out := s.Run(t, "cluster", "status").want(t, 0); strings.Contains(out.Out, "warning") {
			t.Errorf("warned of: %v", out)
		}
	}
}
