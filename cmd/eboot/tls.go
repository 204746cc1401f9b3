package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/internal/fsutil"
	"eboot/internal/identity"
)

func (c *command) tlsCommand() *cobra.Command {
	return group("tls", "Make the certificates of servers and operators", c.tlsCA(), c.tlsCert())
}

// issued is what the verbs of `eboot tls` say of a certificate.
type issued struct {
	Name        string    `json:"name"` // the URI in the certificate
	Certificate string    `json:"certificate"`
	Key         string    `json:"key"` // paths
	Expires     time.Time `json:"expires"`
}

const (
	authorityFile = "ca" // .pem and -key.pem
	maxDays       = 100 * 365
)

func (c *command) tlsCA() *cobra.Command {
	var cluster, out string
	var days int
	cmd := &cobra.Command{
		Use: "ca", Short: "Make the authority of a cluster: ca.pem, which every server gets, and ca-key.pem, which signs and stays here", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			lifetime, err := daysFlag(days)
			if err != nil {
				return err
			}
			authority, pair, err := identity.NewAuthority(cluster, lifetime, time.Now())
			if err != nil {
				return fmt.Errorf("--cluster: %w", err)
			}
			made, err := writePair(out, authorityFile, pair, false)
			if err != nil {
				return err
			}
			made.Name, made.Expires = "eboot://"+cluster+"/ca", authority.Expires()
			return c.print(made, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "authority of cluster %s, until %s: %s goes to every server (tls.ca); keep %s secret and off the servers\n",
					cluster, made.Expires.Format(time.DateOnly), made.Certificate, made.Key)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "name of the cluster, as cluster.name has it")
	cmd.Flags().StringVar(&out, "out", ".", "directory for the two files")
	cmd.Flags().IntVar(&days, "days", int(identity.DefaultAuthorityLifetime/(24*time.Hour)), "how long it is valid")
	return cmd
}

// certFlags are those of `eboot tls cert`.
type certFlags struct {
	ca, role, out, unit string
	names, ips, hosts   []string
	days                int
	replace             bool
}

func (c *command) tlsCert() *cobra.Command {
	var flags certFlags
	cmd := &cobra.Command{
		Use: "cert", Short: "Make the certificates of servers or operators: NAME.pem and NAME-key.pem", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			made, err := makeCertificates(flags)
			if err != nil {
				return err
			}
			return c.print(made, func(w io.Writer) error {
				for _, one := range made {
					if _, err := fmt.Fprintf(w, "%s, until %s: %s and %s\n", one.Name, one.Expires.Format(time.DateOnly), one.Certificate, one.Key); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.ca, "ca", ".", "directory with ca.pem and ca-key.pem")
	f.StringVar(&flags.role, "role", string(identity.Server), "server or operator")
	f.StringSliceVar(&flags.names, "name", nil, "whose certificate it is; several make one each")
	f.StringSliceVar(&flags.ips, "ip", nil, "address by which API clients find the server")
	f.StringSliceVar(&flags.hosts, "dns", nil, "host name by which API clients find the server; a server's own name is always one")
	f.StringVar(&flags.unit, "grant", "", "what an operator's certificate grants: viewer, publisher, operator or admin")
	completeRole(cmd, "grant")
	f.IntVar(&flags.days, "days", int(identity.DefaultLifetime/(24*time.Hour)), "how long it is valid")
	f.StringVar(&flags.out, "out", ".", "directory for the files")
	f.BoolVar(&flags.replace, "replace", false, "replace files that are there: a server takes the new ones without a restart")
	return cmd
}

func daysFlag(days int) (time.Duration, error) {
	if days < 1 || days > maxDays {
		return 0, fmt.Errorf("--days %d: want 1 to %d: %w", days, maxDays, eboot.ErrInvalid)
	}
	return time.Duration(days) * 24 * time.Hour, nil
}

func makeCertificates(flags certFlags) ([]issued, error) {
	request, err := flags.request()
	if err != nil {
		return nil, err
	}
	authority, err := readAuthority(flags.ca)
	if err != nil {
		return nil, err
	}
	hosts := request.DNS
	made := make([]issued, len(flags.names))
	for i, name := range flags.names {
		switch {
		case name == authorityFile:
			return nil, fmt.Errorf("--name %s: the files of the authority are called so: %w", name, eboot.ErrInvalid)
		case strings.HasSuffix(name, "-key"): // its certificate would take the place of a key, with --replace even of the authority's
			return nil, fmt.Errorf("--name %s: the keys of others are called so: %w", name, eboot.ErrInvalid)
		}
		request.Name, request.DNS = name, hosts
		if request.Role == identity.Server && identity.IsHostName(name) {
			request.DNS = append([]string{name}, hosts...)
		}
		pair, expires, err := authority.Issue(request, time.Now())
		if err != nil {
			return nil, fmt.Errorf("--name %s: %w", name, err)
		}
		if made[i], err = writePair(flags.out, name, pair, flags.replace); err != nil {
			return nil, err
		}
		made[i].Name = identity.Name{Cluster: authority.Cluster(), Role: request.Role, Name: name}.String()
		made[i].Expires = expires
	}
	return made, nil
}

// request is what the flags ask for, without the name.
func (f certFlags) request() (r identity.Request, err error) {
	if r.Role, err = identity.ParseRole(f.role); err != nil {
		return r, fmt.Errorf("--role: %w", err)
	}
	if r.Lifetime, err = daysFlag(f.days); err != nil {
		return r, err
	}
	if len(f.names) == 0 {
		return r, fmt.Errorf("--name: whose certificates? %w", eboot.ErrInvalid)
	}
	if len(f.names) > 1 && len(f.ips)+len(f.hosts) > 0 {
		return r, fmt.Errorf("--ip, --dns: belong to one server; make the certificates of %d one by one: %w", len(f.names), eboot.ErrInvalid)
	}
	switch {
	case r.Role == identity.Operator:
		grant, err := eboot.ParseRole(f.unit)
		if err != nil {
			return r, fmt.Errorf("--grant: %w", err)
		}
		r.Unit = string(grant)
	case f.unit != "":
		return r, fmt.Errorf("--grant: is for operators (--role operator): %w", eboot.ErrInvalid)
	}
	for _, text := range f.ips {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return r, fmt.Errorf("--ip %q: want an IP address: %w", text, eboot.ErrInvalid)
		}
		r.IPs = append(r.IPs, ip.WithZone(""))
	}
	r.DNS = f.hosts
	return r, nil
}

func pairPaths(dir, name string) (certificate, key string) {
	return filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
}

func readAuthority(dir string) (*identity.Authority, error) {
	certificate, key := pairPaths(dir, authorityFile)
	var pair identity.Pair
	var err error
	if pair.Certificate, err = os.ReadFile(certificate); err != nil {
		return nil, fmt.Errorf("--ca: %w; `eboot tls ca` makes an authority", err)
	}
	if pair.Key, err = os.ReadFile(key); err != nil {
		return nil, fmt.Errorf("--ca: %w", err)
	}
	a, err := identity.ReadAuthority(pair)
	if err != nil {
		return nil, fmt.Errorf("--ca %s: %w", dir, err)
	}
	return a, nil
}

// writePair writes NAME.pem and NAME-key.pem into a directory, which is made when there
// is none. Without replace neither may be there.
func writePair(dir, name string, pair identity.Pair, replace bool) (made issued, err error) {
	made.Certificate, made.Key = pairPaths(dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return made, err
	}
	if replace {
		err := fsutil.WriteAtomic(made.Key, 0o600, func(w io.Writer) error { _, err := w.Write(pair.Key); return err })
		if err == nil {
			err = fsutil.WriteAtomic(made.Certificate, 0o644, func(w io.Writer) error { _, err := w.Write(pair.Certificate); return err })
		}
		return made, err
	}
	if _, err := os.Lstat(made.Certificate); err == nil {
		return made, fmt.Errorf("%s: exists already: %w", made.Certificate, eboot.ErrConflict)
	}
	if err := writeNew(made.Key, 0o600, pair.Key); err != nil {
		return made, err
	}
	if err := writeNew(made.Certificate, 0o644, pair.Certificate); err != nil {
		return made, errors.Join(err, os.Remove(made.Key))
	}
	return made, nil
}
