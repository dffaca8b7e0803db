"""Access control: roles, pass phrases, hosts, origins."""
